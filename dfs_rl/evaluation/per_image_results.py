"""Per-image results of every method, stored on disk for comparisons between runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import CostTable
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.baselines.methods import MethodResult
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.utils.checkpoint import load_tensors, save_tensors


class PerImageResults(NamedTuple):
    """Results of a method on each image of a split, averaged over its draws.

    Attributes:
        correct: Share of draws that classify each image correctly, float32 ``[n]`` in [0, 1].
        computation: Computation of each image in percent, everything included, float32 ``[n]``.
    """

    correct: Tensor
    computation: Tensor


class SplitResults(NamedTuple):
    """Results of every method on both splits, by the method's key.

    Attributes:
        reported: Results on the reported split.
        selection: Results on the selection split, for methods that can be deployed.
    """

    reported: Mapping[str, PerImageResults]
    selection: Mapping[str, PerImageResults]


def per_image_results_of(methods: Sequence[MethodResult], costs: CostTable) -> SplitResults:
    """Average every method's records over its draws."""
    return SplitResults(
        {method.key: _average(method.records, costs) for method in methods},
        {m.key: _average([m.selection], costs) for m in methods if m.selection is not None},
    )


def save_per_image_results(path: Path, results: SplitResults) -> None:
    """Write per-image results atomically."""
    save_tensors(
        path,
        {
            f"{split}/{key}/{name}": value
            for split, of_methods in results._asdict().items()
            for key, outcome in of_methods.items()
            for name, value in outcome._asdict().items()
        },
    )


def load_per_image_results(path: Path) -> SplitResults:
    """Load per-image results written by ``save_per_image_results``.

    Raises:
        CheckpointError: If the file is missing, damaged or has other contents.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in SplitResults._fields}
    try:
        for name, tensor in load_tensors(path).items():
            split, key, field = name.split("/")
            found[split].setdefault(key, {})[field] = tensor
        return SplitResults(
            *({key: PerImageResults(**fields) for key, fields in found[s].items()} for s in found)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold the outcomes of an evaluation.") from error


def _average(records: Sequence[GateRecords], costs: CostTable) -> PerImageResults:
    return PerImageResults(
        torch.stack([r.correct.double() for r in records]).mean(dim=0).float(),
        torch.stack([r.computation(costs) for r in records]).mean(dim=0).float(),
    )
