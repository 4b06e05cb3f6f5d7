"""Computation of gates on images of different difficulty."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.evaluation.comparison_records import GATE, ComputationByDifficulty, EvaluatedRun, Point

SKIP_ALL_KEY = "uniform_0"
"""Key of the uniform setting that skips every layer, a reference that nobody deploys."""


_MIN_IMAGES = 10
"""Smallest number of images in a class whose mean computation is reported."""


class Difficulty(NamedTuple):
    """Difficulty classes: the cheapest uniform setting that classifies an image correctly.

    The setting that skips every layer does not count.

    Attributes:
        classes: Names of the classes; the last one contains the images that no setting classifies
            correctly.
        shares: Share of the images in each class, in [0, 1].
        of_image: Class of each image, int64 ``[n]``.
    """

    classes: tuple[str, ...]
    shares: tuple[float, ...]
    of_image: Tensor


def image_difficulty(run: EvaluatedRun) -> Difficulty:
    """Assign the images of the reported split to difficulty classes, regardless of the gate."""
    fixed = [m for m in run.summary.methods if m.role == "fixed" and m.key != SKIP_ALL_KEY]
    cheapest_first = sorted(fixed, key=lambda m: m.computation)
    right = torch.stack([run.results.reported[m.key].correct > 0 for m in cheapest_first])
    none = torch.ones(1, right.shape[1], dtype=torch.bool)
    first = torch.cat([right, none]).int().argmax(dim=0)  # first correct setting
    classes = (*(m.label for m in cheapest_first), "none is right")
    counts = torch.bincount(first, minlength=len(classes)).double()
    return Difficulty(classes, tuple((counts / len(first)).tolist()), first)


def computation_by_difficulty(
    gates: Sequence[Point], runs: Mapping[str, Sequence[EvaluatedRun]], difficulty: Difficulty
) -> Iterator[ComputationByDifficulty]:
    """Yield the computation of each gate in each difficulty class, relative to its overall mean.

    Computation is averaged over the seeds of a gate.

    Args:
        gates: Gates to report.
        runs: Runs of each gate, by its label.
        difficulty: Difficulty classes of the images.
    """
    for gate in gates:
        group = runs[gate.label]
        costs = torch.stack([run.results.reported[GATE].computation for run in group]).double()
        mean = costs.mean(dim=0)  # [n]
        members = [mean[difficulty.of_image == i] for i in range(len(difficulty.classes))]
        yield ComputationByDifficulty(
            label=gate.label,
            family=gate.family,
            relative=tuple(
                float(m.mean() / mean.mean()) if len(m) >= _MIN_IMAGES else None for m in members
            ),
        )
