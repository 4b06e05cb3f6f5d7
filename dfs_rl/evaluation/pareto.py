"""Curves of gates over several budgets, with spread over seeds and bootstrap over images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dfs_rl.evaluation.comparison_records import (
    DEPLOYABLE_BASELINES,
    GATE,
    Curve,
    CurvePair,
    EvaluatedRun,
    Spread,
    spread,
)
from dfs_rl.evaluation.curves import REPORTED_COMPUTATIONS, CurvePoint, accuracy_at, hypervolume
from dfs_rl.evaluation.grouping import Groups, point_key
from dfs_rl.evaluation.metrics import Interval, interval, resampled_means
from dfs_rl.evaluation.per_image_results import PerImageResults

_NEARLY_ALL = 0.95
"""Share of draws in which a curve must reach a computation to have an interval there."""
_Curves = list[list[CurvePoint]]
"""Points of the curve of each seed."""


@dataclass(frozen=True, eq=False)
class ParetoCurve:
    """Results of a gate, or of a baseline at the costs of a gate, over several budgets.

    Attributes:
        gate: Label of the gate, or of the gate with the same costs.
        baseline: Name of the baseline, for example ``"confidence cascades"``; None for the gate.
        seeds: Seeds of the runs.
        results: Per-image results, ``[seeds][points]``.
        histograms: Share of images per layer and option, float ``[seeds, points, layers,
            options]``; None for a baseline.
        reference_point: Reference point of the hypervolume.
        n_incomplete_seeds: Number of seeds left out because they lack a point.
    """

    gate: str
    baseline: str | None
    seeds: tuple[object, ...]
    results: Sequence[Sequence[PerImageResults]]
    histograms: Tensor | None
    reference_point: CurvePoint
    n_incomplete_seeds: int

    @property
    def label(self) -> str:
        """Name in tables."""
        return (
            self.gate if self.baseline is None else f"{self.baseline} at the costs of {self.gate}"
        )

    @cached_property
    def _correct(self) -> Tensor:
        """Return correctness ``[seeds, points, images]``."""
        return torch.stack([torch.stack([o.correct for o in seed]) for seed in self.results])

    @cached_property
    def _computation(self) -> Tensor:
        """Return computation ``[seeds, points, images]``."""
        return torch.stack([torch.stack([o.computation for o in seed]) for seed in self.results])

    @cached_property
    def means(self) -> _Curves:
        """Curve of each seed."""
        return _curves(
            100.0 * self._correct.double().mean(dim=-1), self._computation.double().mean(dim=-1)
        )

    @cached_property
    def resampled(self) -> list[_Curves]:
        """Curves of the seeds in each bootstrap draw of images."""
        correct, computation = map(resampled_means, (self._correct, self._computation))
        return [
            _curves(100.0 * correct[..., draw], computation[..., draw])
            for draw in range(correct.shape[-1])
        ]

    @cached_property
    def hypervolumes(self) -> list[float]:
        """Hypervolume of each seed."""
        return [hypervolume(points, reference_point=self.reference_point) for points in self.means]

    @cached_property
    def resampled_hypervolumes(self) -> list[float]:
        """Hypervolume in each bootstrap draw of images, averaged over seeds."""
        return [
            sum(hypervolume(points, reference_point=self.reference_point) for points in seeds)
            / len(seeds)
            for seeds in self.resampled
        ]

    def curve(self) -> Curve:
        """Return the figures of the curve, averaged over seeds, with intervals over images."""
        computations = self._computation.double().mean(dim=(0, 2))
        order = self._computation.mean(dim=(0, 2)).argsort().tolist()
        mixes: tuple[tuple[tuple[float, ...], ...], ...] = ()
        if self.histograms is not None:
            shares = self.histograms.double().mean(dim=0)[order]
            mixes = tuple(tuple(map(tuple, point)) for point in shares.tolist())
        accuracies: dict[str, Spread] = {}
        intervals: dict[str, Interval] = {}
        for computation in REPORTED_COMPUTATIONS:
            if (values := _accuracies_at(self.means, computation)) is not None:
                accuracies[f"{computation:g}"] = spread(values)
            found = [_accuracies_at(curves, computation) for curves in self.resampled]
            means = [sum(values) / len(values) for values in found if values is not None]
            if len(means) >= _NEARLY_ALL * len(found):
                intervals[f"{computation:g}"] = interval(means)
        return Curve(
            label=self.label,
            gate=self.gate,
            baseline=self.baseline,
            points=self._correct.shape[1],
            seeds=len(self.seeds),
            n_incomplete_seeds=self.n_incomplete_seeds,
            hypervolume=spread(self.hypervolumes),
            interval=interval(self.resampled_hypervolumes),
            accuracy_at=accuracies,
            accuracy_interval=intervals,
            histograms=mixes,
            computations=tuple(computations[order].tolist()),
        )


def pareto_curves(families: Groups, reference_point: CurvePoint) -> Iterator[ParetoCurve]:
    """Yield the curves of gates with several budgets or cost weights, and of their baselines.

    Args:
        families: Runs by gate, apart from budget and cost weight.
        reference_point: Reference point of the hypervolumes.
    """
    for label, family in families.items():
        point_keys = sorted({point_key(run) for run in family})
        if len(point_keys) == 1:
            continue
        seeds: dict[object, dict[tuple[str, ...], EvaluatedRun]] = {}
        for run in family:
            seeds.setdefault(run.settings.get("seed"), {})[point_key(run)] = run
        # A missing point alone changes the hypervolume, so incomplete seeds are left out.
        whole = {
            seed: [by[key] for key in point_keys]
            for seed, by in seeds.items()
            if len(by) == len(point_keys)
        }
        if not whole:
            continue
        n_incomplete_seeds = len(seeds) - len(whole)
        for key in (GATE, *DEPLOYABLE_BASELINES):
            # A baseline may be missing at some costs or at all.
            there = [
                i
                for i in range(len(point_keys))
                if all(key in group[i].results.reported for group in whole.values())
            ]
            if not there:
                continue
            is_gate = key == GATE
            group = next(iter(whole.values()))
            kind = next(m.label for m in group[there[0]].summary.methods if m.key == key)
            yield ParetoCurve(
                gate=label,
                baseline=None if is_gate else f"{kind.removesuffix('s')}s",
                n_incomplete_seeds=n_incomplete_seeds,
                seeds=tuple(whole),
                results=[[group[i].best_reported(key) for i in there] for group in whole.values()],
                histograms=torch.tensor(
                    [[run.summary.histogram for run in group] for group in whole.values()]
                )
                if is_gate
                else None,
                reference_point=reference_point,
            )


def curve_pairs(curves: Sequence[ParetoCurve]) -> Iterator[CurvePair]:
    """Compare the curve of each gate with those of its baselines and of the gates after it."""
    for i, first in enumerate(curves):
        if first.baseline is not None:
            continue
        for j, second in enumerate(curves):
            own_baseline = second.baseline is not None and second.gate == first.gate
            if not own_baseline and not (second.baseline is None and j > i):
                continue
            ours, theirs = first.hypervolumes, second.hypervolumes
            same_seeds = first.seeds == second.seeds and len(ours) > 1
            drawn = zip(first.resampled_hypervolumes, second.resampled_hypervolumes, strict=True)
            yield CurvePair(
                first=first.label,
                second=second.label,
                difference=sum(ours) / len(ours) - sum(theirs) / len(theirs),
                interval=interval([a - b for a, b in drawn]),
                spread=spread([a - b for a, b in zip(ours, theirs, strict=True)])
                if same_seeds
                else None,
            )


def _curves(accuracy: Tensor, computation: Tensor) -> _Curves:
    """Convert ``[seeds, points]`` tensors to one curve per seed."""
    return [
        list(map(CurvePoint, *seed))
        for seed in zip(computation.tolist(), accuracy.tolist(), strict=True)
    ]


def _accuracies_at(curves: _Curves, computation: float) -> list[float] | None:
    """Return the accuracy of each seed at a computation, None if a seed does not reach it."""
    values = [accuracy_at(points, computation) for points in curves]
    inside = [value for value in values if value is not None]
    return inside if len(inside) == len(values) else None
