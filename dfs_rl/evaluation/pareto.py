"""Curves of gates over several budgets, with spread over seeds and bootstrap over images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.evaluation.comparison_records import Curve, CurvePair, Spread, spread
from dfs_rl.evaluation.curves import REPORTED_COMPUTATIONS, CurvePoint, accuracy_at, hypervolume
from dfs_rl.evaluation.metrics import Interval, interval, resampled_means
from dfs_rl.evaluation.per_image_results import PerImageResults

_NEARLY_ALL = 0.95
"""Share of draws in which a curve must reach a computation to have an interval there."""


@dataclass(frozen=True, eq=False)
class ParetoCurve:
    """Results of a gate, or of a baseline at the costs of a gate, over several budgets.

    Attributes:
        gate: Label of the gate, or of the gate with the same costs.
        baseline: Name of the baseline, for example ``"confidence cascades"``; None for the gate.
        seeds: Seeds of the runs.
        results: Per-image results, ``[seeds][points]``.
        histograms: Share of images per layer and option, ``[seeds][points]`` of ``[layers,
            options]``; empty for a baseline.
        reference_point: Reference point of the hypervolume.
        n_incomplete_seeds: Number of seeds left out because they lack a point.
    """

    gate: str
    baseline: str | None
    seeds: tuple[object, ...]
    results: Sequence[Sequence[PerImageResults]]
    histograms: Sequence[Sequence[Tensor]]
    reference_point: CurvePoint
    n_incomplete_seeds: int

    @property
    def label(self) -> str:
        """Name in tables."""
        return (
            self.gate if self.baseline is None else f"{self.baseline} at the costs of {self.gate}"
        )

    def curve(self) -> Curve:
        """Return the figures of the curve, averaged over seeds, with intervals over images."""
        correct, computation = self._stacked()  # [seeds, points, images] each
        means = _points(100.0 * correct.double().mean(dim=-1), computation.double().mean(dim=-1))
        resampled = self._resampled_curves()
        order = computation.mean(dim=(0, 2)).argsort().tolist()
        mixes: tuple[tuple[tuple[float, ...], ...], ...] = ()
        if self.histograms:
            shares = torch.stack([torch.stack(list(points)) for points in self.histograms])
            mixes = tuple(
                tuple(tuple(row) for row in shares.double().mean(dim=0)[point].tolist())
                for point in order
            )
        return Curve(
            label=self.label,
            gate=self.gate,
            baseline=self.baseline,
            points=correct.shape[1],
            seeds=len(self.seeds),
            n_incomplete_seeds=self.n_incomplete_seeds,
            hypervolume=spread(self.hypervolumes()),
            interval=interval(self.resampled_hypervolumes(resampled)),
            accuracy_at=dict(_interpolated(means)),
            accuracy_interval=dict(_intervals(resampled)),
            histograms=mixes,
            computations=tuple(computation.double().mean(dim=(0, 2))[order].tolist()),
        )

    def hypervolumes(self) -> list[float]:
        """Return the hypervolume of each seed's curve."""
        correct, computation = self._stacked()
        means = _points(100.0 * correct.double().mean(dim=-1), computation.double().mean(dim=-1))
        return [hypervolume(points, reference_point=self.reference_point) for points in means]

    def resampled_hypervolumes(
        self, resampled: "Sequence[Sequence[Sequence[CurvePoint]]] | None" = None
    ) -> list[float]:
        """Return the hypervolume in each bootstrap draw of images, averaged over seeds.

        Args:
            resampled: Curves, ``[draws][seeds][points]``; None computes them.
        """
        return [
            sum(hypervolume(points, reference_point=self.reference_point) for points in seeds)
            / len(seeds)
            for seeds in (self._resampled_curves() if resampled is None else resampled)
        ]

    def _stacked(self) -> tuple[Tensor, Tensor]:
        return (
            torch.stack([torch.stack([o.correct for o in points]) for points in self.results]),
            torch.stack([torch.stack([o.computation for o in points]) for points in self.results]),
        )

    def _resampled_curves(self) -> list[list[list[CurvePoint]]]:
        """Return the curves in each bootstrap draw of images, ``[draws][seeds][points]``."""
        correct, computation = (resampled_means(t) for t in self._stacked())  # [..., draws]
        return [
            _points(100.0 * correct[..., draw], computation[..., draw])
            for draw in range(correct.shape[-1])
        ]


def curve_pairs(pareto_curves: Sequence[ParetoCurve]) -> Iterator[CurvePair]:
    """Compare the curve of each gate with those of its baselines and of the gates after it."""
    hypervolumes = [method.resampled_hypervolumes() for method in pareto_curves]
    for i, first in enumerate(pareto_curves):
        if first.baseline is not None:
            continue
        for j, second in enumerate(pareto_curves):
            own_baseline = second.baseline is not None and second.gate == first.gate
            later_gate = second.baseline is None and j > i
            if not (own_baseline or later_gate):
                continue
            ours, theirs = first.hypervolumes(), second.hypervolumes()
            same = first.seeds == second.seeds
            differences = [a - b for a, b in zip(ours, theirs, strict=True)] if same else []
            yield CurvePair(
                first=first.label,
                second=second.label,
                difference=sum(ours) / len(ours) - sum(theirs) / len(theirs),
                interval=interval(
                    [a - b for a, b in zip(hypervolumes[i], hypervolumes[j], strict=True)]
                ),
                spread=spread(differences) if len(differences) > 1 else None,
            )


def _points(accuracy: Tensor, computation: Tensor) -> list[list[CurvePoint]]:
    """Convert ``[seeds, points]`` tensors to one curve per seed."""
    return [
        [CurvePoint(c, a) for c, a in zip(costs, rights, strict=True)]
        for costs, rights in zip(computation.tolist(), accuracy.tolist(), strict=True)
    ]


def _interpolated(curves: Sequence[Sequence[CurvePoint]]) -> Iterator[tuple[str, Spread]]:
    """Interpolate the curves, one per seed, at the reported computations."""
    for computation in REPORTED_COMPUTATIONS:
        values = _accuracies_at(curves, computation)
        if values is not None:
            yield f"{computation:g}", spread(values)


def _intervals(
    resampled: Sequence[Sequence[Sequence[CurvePoint]]],
) -> Iterator[tuple[str, Interval]]:
    for computation in REPORTED_COMPUTATIONS:
        found = [_accuracies_at(curves, computation) for curves in resampled]
        means = [sum(values) / len(values) for values in found if values is not None]
        if len(means) >= _NEARLY_ALL * len(resampled):
            yield f"{computation:g}", interval(means)


def _accuracies_at(
    curves: Sequence[Sequence[CurvePoint]], computation: float
) -> list[float] | None:
    """Return the accuracy of each seed at a computation, None if a seed does not reach it."""
    values = [accuracy_at(points, computation) for points in curves]
    inside = [value for value in values if value is not None]
    return inside if len(inside) == len(values) else None
