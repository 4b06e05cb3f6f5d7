"""What gates spend on images that need little and on images that need much."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.evaluation.comparison_records import GATE, ComputationByDifficulty, EvaluatedRun, Point

SKIP_ALL_KEY = "uniform_0"
"""Key of the setting that skips every layer: a reference, but nothing that one would run."""


_MIN_IMAGES = 10
"""The mean over fewer images says nothing."""


class Difficulty(NamedTuple):
    """Images sorted by the fewest uniform bits that classify them rightly, skipping aside.

    Attributes:
        classes: Names, the last one of the images that no bits classify rightly.
        shares: Share of the images in each.
        of_image: Class of each image, int64 ``[n]``.
    """

    classes: tuple[str, ...]
    shares: tuple[float, ...]
    of_image: Tensor


def image_difficulty(run: EvaluatedRun) -> Difficulty:
    """Sort the images of a run's reported split; the uniform settings, not the gate, decide."""
    fixed = [m for m in run.summary.methods if m.role == "fixed" and m.key != SKIP_ALL_KEY]
    cheapest_first = sorted(fixed, key=lambda m: m.computation)
    right = torch.stack([run.results.reported[m.key].correct > 0 for m in cheapest_first])
    none = torch.ones(1, right.shape[1], dtype=torch.bool)
    first = torch.cat([right, none]).int().argmax(dim=0)  # the first that is right
    classes = (*(m.label for m in cheapest_first), "none is right")
    counts = torch.bincount(first, minlength=len(classes)).double()
    return Difficulty(classes, tuple((counts / len(first)).tolist()), first)


def computation_by_difficulty(
    gates: Sequence[Point], runs: Mapping[str, Sequence[EvaluatedRun]], difficulty: Difficulty
) -> Iterator[ComputationByDifficulty]:
    """Say what each gate spends on the images of each class, mean over its seeds, relative to its mean.

    Args:
        gates: The gates.
        runs: The runs of each, by its label.
        difficulty: The classes.
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
