"""Per-image results of every method, stored on disk for comparisons between runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import CostTable
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.baselines.registry import MethodResult
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.utils.checkpoint import load_tensors, save_tensors


class PerImageResults(NamedTuple):
    """Results of a method on each image of a split, averaged over its draws."""

    correct: Tensor  # share of draws that classify the image correctly, float32 [n]
    computation: Tensor  # in percent, everything included, float32 [n]


class SplitResults(NamedTuple):
    """Results by the method's key; ``selection`` has only methods that can be deployed."""

    reported: Mapping[str, PerImageResults]
    selection: Mapping[str, PerImageResults]


def per_image_results_of(methods: Sequence[MethodResult], costs: CostTable) -> SplitResults:
    """Average every method's records over its draws."""

    def average(records: Sequence[GateRecords]) -> PerImageResults:
        return PerImageResults(
            torch.stack([r.correct.double() for r in records]).mean(dim=0).float(),
            torch.stack([r.computation(costs) for r in records]).mean(dim=0).float(),
        )

    return SplitResults(
        {method.key: average(method.records) for method in methods},
        {m.key: average([m.selection]) for m in methods if m.selection is not None},
    )


def save_per_image_results(path: Path, results: SplitResults) -> None:
    """Write per-image results atomically."""
    tensors = {
        f"{split}/{key}/{name}": value
        for split, by_method in results._asdict().items()
        for key, of_method in by_method.items()
        for name, value in of_method._asdict().items()
    }
    save_tensors(path, tensors)


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
        raise CheckpointError(f"{path} has no per-image results of an evaluation.") from error
