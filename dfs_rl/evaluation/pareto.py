"""Curves of gates over several budgets, with spread over seeds and bootstrap over images."""

from collections.abc import Iterator, Mapping, Sequence

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
from dfs_rl.evaluation.metrics import Interval, interval, mean, resampled_means

_NEARLY_ALL = 0.95
"""Share of draws in which a curve must reach a computation to have an interval there."""
_Curves = list[list[CurvePoint]]  # points of the curve of each seed
_Measured = tuple[Curve, dict[object, float], list[float]]
"""A curve, its hypervolume for each seed, and those of bootstrap draws, averaged over seeds."""


def pareto_curves(
    families: Groups, reference_point: CurvePoint
) -> tuple[tuple[Curve, ...], tuple[CurvePair, ...]]:
    """Return the curves of gates with several budgets or cost weights, and their differences.

    Each gate has the curves of its baselines after its own. It is compared with them and with the
    gates after it.
    """
    measured = list(_measured_curves(families, reference_point))
    return tuple(curve for curve, *_ in measured), tuple(_pairs(measured))


def _measured_curves(families: Groups, reference_point: CurvePoint) -> Iterator[_Measured]:
    for gate, family in families.items():
        keys = sorted({point_key(run) for run in family})
        seeds: dict[object, dict[tuple[str, ...], EvaluatedRun]] = {}
        for run in family:
            seeds.setdefault(run.settings.get("seed"), {})[point_key(run)] = run
        # A missing point alone changes the hypervolume, so incomplete seeds are left out.
        complete = {
            seed: [by[key] for key in keys] for seed, by in seeds.items() if {*keys} == {*by}
        }
        if len(keys) == 1 or not complete:
            continue
        for method in (GATE, *DEPLOYABLE_BASELINES):
            # A baseline may be missing at some costs or at all.
            there = [
                i
                for i in range(len(keys))
                if all(method in runs[i].reported for runs in complete.values())
            ]
            if there:
                runs = {seed: [runs[i] for i in there] for seed, runs in complete.items()}
                yield _measured(gate, method, runs, len(seeds) - len(complete), reference_point)


def _pairs(measured: Sequence[_Measured]) -> Iterator[CurvePair]:
    for i, (first, ours, our_draws) in enumerate(measured):
        for second, theirs, their_draws in measured[i + 1 :]:
            is_baseline = second.baseline is not None
            if first.baseline is not None or (is_baseline and second.gate != first.gate):
                continue
            same_seeds = ours.keys() == theirs.keys() and len(ours) > 1
            pairs = [ours[seed] - theirs[seed] for seed in ours] if same_seeds else None
            yield CurvePair(
                first=first.label,
                second=second.label,
                difference=mean(ours.values()) - mean(theirs.values()),
                interval=interval([a - b for a, b in zip(our_draws, their_draws, strict=True)]),
                spread=None if pairs is None else spread(pairs),
            )


def _measured(
    gate: str,
    method: str,
    runs: Mapping[object, Sequence[EvaluatedRun]],
    n_incomplete_seeds: int,
    reference_point: CurvePoint,
) -> _Measured:
    """Return the curve of a method of ``runs``, which are the points of each seed."""
    results = [[run.best_reported(method) for run in of_seed] for of_seed in runs.values()]
    correct, computation = (  # [seeds, points, images]
        torch.stack([torch.stack([getattr(point, name) for point in seed]) for seed in results])
        for name in ("correct", "computation")
    )
    curves = _curves(correct.double().mean(dim=-1), computation.double().mean(dim=-1))
    drawn = zip(*(resampled_means(v).unbind(-1) for v in (correct, computation)), strict=True)
    resampled = [_curves(*draw) for draw in drawn]
    accuracies: dict[str, Spread] = {}
    intervals: dict[str, Interval] = {}
    for cost in REPORTED_COMPUTATIONS:
        if (values := _accuracies_at(curves, cost)) is not None:
            accuracies[f"{cost:g}"] = spread(values)
        found = [_accuracies_at(draw, cost) for draw in resampled]
        means = [mean(values) for values in found if values is not None]
        if len(means) >= _NEARLY_ALL * len(found):
            intervals[f"{cost:g}"] = interval(means)
    hypervolumes, *drawn_hypervolumes = (
        [hypervolume(points, reference_point=reference_point) for points in seeds]
        for seeds in (curves, *resampled)
    )
    means_of_draws = [mean(seeds) for seeds in drawn_hypervolumes]
    mean_costs = computation.double().mean(dim=(0, 2))  # [points]
    order = mean_costs.argsort()
    first = next(iter(runs.values()))[0].summary
    is_gate = method == GATE
    baseline = None if is_gate else f"{first.by_key[method].label.removesuffix('s')}s"
    histograms = [[run.summary.histogram for run in of_seed] for of_seed in runs.values()]
    shares = torch.tensor(histograms).double().mean(dim=0)[order].tolist() if is_gate else []
    curve = Curve(
        label=gate if is_gate else f"{baseline} at the costs of {gate}",
        gate=gate,
        baseline=baseline,
        points=len(mean_costs),
        seeds=len(runs),
        n_incomplete_seeds=n_incomplete_seeds,
        hypervolume=spread(hypervolumes),
        interval=interval(means_of_draws),
        accuracy_at=accuracies,
        accuracy_interval=intervals,
        histograms=tuple(tuple(map(tuple, point)) for point in shares),
        computations=tuple(mean_costs[order].tolist()),
    )
    return curve, dict(zip(runs, hypervolumes, strict=True)), means_of_draws


def _curves(correct: Tensor, computation: Tensor) -> _Curves:
    """Convert shares of correct images and costs, ``[seeds, points]``, to a curve per seed."""
    return [
        list(map(CurvePoint, *seed))
        for seed in zip(computation.tolist(), (100.0 * correct).tolist(), strict=True)
    ]


def _accuracies_at(curves: _Curves, computation: float) -> list[float] | None:
    """Return the accuracy of each seed at a computation, None if a seed does not reach it."""
    values = [accuracy_at(points, computation) for points in curves]
    inside = [value for value in values if value is not None]
    return inside if len(inside) == len(values) else None
