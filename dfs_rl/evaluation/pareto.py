"""Gates with several budgets as curves, over seeds and over other images they could have been measured on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_rl.evaluation.bootstrap import interval, resampled_means
from dfs_rl.evaluation.comparison_records import Curve, CurvePair, Interval, Spread, spread
from dfs_rl.evaluation.curves import READ_AT, CurvePoint, accuracy_at, hypervolume
from dfs_rl.evaluation.per_image_results import Outcome

_NEARLY_ALL = 0.95
"""Of the draws in which a curve must reach a computation for its accuracy there to have an interval."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A method at several budgets.

    Attributes:
        gate: Label of the gate whose costs it has.
        rival: What it is if it is not that gate itself, for example ``"confidence cascades"``.
        seeds: The seeds.
        outcomes: What it did, ``[seeds][points]``.
        histograms: How often each layer ran at each option, ``[seeds][points]`` of ``[layers, options]``; empty for no gate.
        worst: The corner that areas end at.
        lacking: Seeds that have no part in it, because they lack a point.
    """

    gate: str
    rival: str | None
    seeds: tuple[object, ...]
    outcomes: Sequence[Sequence[Outcome]]
    histograms: Sequence[Sequence[Tensor]]
    worst: CurvePoint
    lacking: int

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.gate if self.rival is None else f"{self.rival} at the costs of {self.gate}"

    def curve(self) -> Curve:
        """Return its figures."""
        correct, computation = self._stacked()  # [seeds, points, images] each
        means = _points(100.0 * correct.double().mean(dim=-1), computation.double().mean(dim=-1))
        drawn = self._drawn()
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
            rival=self.rival,
            points=correct.shape[1],
            seeds=len(self.seeds),
            lacking=self.lacking,
            hypervolume=spread(self.areas()),
            interval=interval(self.drawn_areas(drawn)),
            accuracy_at=dict(_read_off(means)),
            accuracy_interval=dict(_intervals(drawn)),
            histograms=mixes,
            computations=tuple(computation.double().mean(dim=(0, 2))[order].tolist()),
        )

    def areas(self) -> list[float]:
        """Return the area of each seed's curve."""
        correct, computation = self._stacked()
        means = _points(100.0 * correct.double().mean(dim=-1), computation.double().mean(dim=-1))
        return [hypervolume(points, worst=self.worst) for points in means]

    def drawn_areas(
        self, drawn: "Sequence[Sequence[Sequence[CurvePoint]]] | None" = None
    ) -> list[float]:
        """Return the area in each draw of images, mean over seeds."""
        return [
            sum(hypervolume(points, worst=self.worst) for points in seeds) / len(seeds)
            for seeds in (self._drawn() if drawn is None else drawn)
        ]

    def _stacked(self) -> tuple[Tensor, Tensor]:
        return (
            torch.stack([torch.stack([o.correct for o in points]) for points in self.outcomes]),
            torch.stack([torch.stack([o.computation for o in points]) for points in self.outcomes]),
        )

    def _drawn(self) -> list[list[list[CurvePoint]]]:
        """Return the curve of each seed in each draw of images."""
        correct, computation = (resampled_means(t) for t in self._stacked())  # [..., draws]
        return [
            _points(100.0 * correct[..., draw], computation[..., draw])
            for draw in range(correct.shape[-1])
        ]


def curve_pairs(traced: Sequence[Traced]) -> Iterator[CurvePair]:
    """Compare the curve of every gate with its rivals' and with those of the gates after it."""
    areas = [method.drawn_areas() for method in traced]
    for i, first in enumerate(traced):
        if first.rival is not None:
            continue
        for j, second in enumerate(traced):
            own_rival = second.rival is not None and second.gate == first.gate
            later_gate = second.rival is None and j > i
            if not (own_rival or later_gate):
                continue
            ours, theirs = first.areas(), second.areas()
            same = first.seeds == second.seeds
            differences = [a - b for a, b in zip(ours, theirs, strict=True)] if same else []
            yield CurvePair(
                first=first.label,
                second=second.label,
                difference=sum(ours) / len(ours) - sum(theirs) / len(theirs),
                interval=interval([a - b for a, b in zip(areas[i], areas[j], strict=True)]),
                spread=spread(differences) if len(differences) > 1 else None,
            )


def _points(accuracy: Tensor, computation: Tensor) -> list[list[CurvePoint]]:
    """Turn ``[seeds, points]`` tensors into curves."""
    return [
        [CurvePoint(c, a) for c, a in zip(costs, rights, strict=True)]
        for costs, rights in zip(computation.tolist(), accuracy.tolist(), strict=True)
    ]


def _read_off(curves: Sequence[Sequence[CurvePoint]]) -> Iterator[tuple[str, Spread]]:
    """Read curves, one for each seed, off at fixed computations."""
    for computation in READ_AT:
        values = _at(curves, computation)
        if values is not None:
            yield f"{computation:g}", spread(values)


def _intervals(
    drawn: Sequence[Sequence[Sequence[CurvePoint]]],
) -> Iterator[tuple[str, Interval]]:
    for computation in READ_AT:
        found = [_at(curves, computation) for curves in drawn]
        means = [sum(values) / len(values) for values in found if values is not None]
        if len(means) >= _NEARLY_ALL * len(drawn):
            yield f"{computation:g}", interval(means)


def _at(curves: Sequence[Sequence[CurvePoint]], computation: float) -> list[float] | None:
    """Return every seed's accuracy at a computation; None if one does not reach it."""
    values = [accuracy_at(points, computation) for points in curves]
    inside = [value for value in values if value is not None]
    return inside if len(inside) == len(values) else None
