"""Comparison of finished runs: points over seeds, paired differences and recommendations."""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from dfs_rl.evaluation.budgets import results_at_budgets, select_points
from dfs_rl.evaluation.comparison_records import (
    BEFORE,
    DEPLOYABLE_BASELINES,
    GATE,
    ComparisonOfRuns,
    ComputationByDifficulty,
    EvaluatedRun,
    Pair,
    Point,
    Spread,
    TrainingCost,
    spread,
)
from dfs_rl.evaluation.comparison_summary import comparison_verdict
from dfs_rl.evaluation.curves import CurvePoint, hypervolume_reference_point
from dfs_rl.evaluation.grouping import (
    BUDGETS,
    Groups,
    check_comparable,
    group_by_family,
    group_by_gate,
)
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.pareto import pareto_curves
from dfs_rl.evaluation.summary import PerImageResults
from dfs_rl.evaluation.timing import CostName
from dfs_rl.evaluation.verdict import with_cost_tolerance

_SKIP_ALL = "uniform_0"
"""Key of the uniform setting that skips every layer, a reference that nobody deploys."""
_MIN_IMAGES = 10
"""Smallest number of images in a difficulty class whose mean computation is reported."""
_ON_COTRAINED = " on the co-trained backbone"
"""Suffix of the names of baselines and uniform settings on the co-trained backbone."""
_BOX_LINE, _LEARNED = 100, 101
"""Complexities of a rule or exits, and of a gate; larger than that of any static bit table."""
_DIGITS = (3, 4, 5)  # candidate numbers of significant digits of the cost in a baseline's label


def compare_runs(
    runs: Sequence[EvaluatedRun], failed: Mapping[str, str] | None = None
) -> ComparisonOfRuns:
    """Compare runs; runs that differ only in the seed form one gate.

    ``failed`` has the reason of each run that could not be evaluated, for the report.

    Raises:
        DataError: If the runs cannot be compared or a gate has the same seed twice.
    """
    check_comparable(runs)
    named, families = group_by_gate(runs), group_by_family(runs)
    family_of = {run: label for label, family in families.items() for run in family}
    gates = [_gate_point(label, family_of[group[0]], group) for label, group in named.items()]
    baselines = _unique_baselines(
        (label, _baseline_point(group[0], key), group[0].selection[key].correct)
        for label, group in named.items()
        for name in DEPLOYABLE_BASELINES
        for key in (name, f"{name}{BEFORE}")
        if key in group[0].reported
    )
    points = sorted([*gates, *(point for point, _ in baselines)], key=_cost)
    plain = next((run for run in runs if not run.is_cotrained), runs[0])
    uniform = [m.key for m in plain.summary.methods if m.role == "fixed"]
    references = sorted((_baseline_point(plain, key) for key in uniform), key=_cost)
    running = [point for point in references if point.kind != _SKIP_ALL]
    correct = {
        **{
            label: _mean_correct([run.selection[GATE] for run in group])
            for label, group in named.items()
        },
        **{point.label: theirs for point, theirs in baselines},
        **{point.label: plain.selection[point.kind].correct for point in running},
    }
    timing = runs[0].summary.timing
    costs: tuple[CostName, ...] = ("computation",) if timing is None else get_args(CostName)
    fronts = {cost: _front([*running, *points], correct, cost) for cost in costs}
    reference_point = hypervolume_reference_point(
        [_curve_point(point) for point in running],
        [_curve_point(point) for point in references if point.kind == _SKIP_ALL],
        [_curve_point(gate) for gate in gates],
    )
    curves, curve_pairs = pareto_curves(families, reference_point)
    classes, shares, by_difficulty = _difficulty(runs[0], gates, named)
    asked = {run.settings.get(name) for run in runs for name in BUDGETS} - {None}
    budgets = sorted({float(str(budget)) for budget in asked})
    about = runs[0].summary
    comparison = ComparisonOfRuns(
        dataset=about.dataset,
        split=about.split,
        n=about.n,
        options=about.options,
        cost_model=about.cost_model,
        points=tuple(points),
        references=tuple(references),
        budgets=results_at_budgets(budgets, points, running, correct),
        pairs=tuple(_pairs(named, gates)),
        curves=curves,
        curve_pairs=curve_pairs,
        reference_accuracy=reference_point.accuracy,
        reference_computation=reference_point.computation,
        trainings=tuple(_training_cost(*item) for item in families.items()),
        difficulty=classes,
        difficulty_shares=shares,
        computation_by_difficulty=by_difficulty,
        pareto_front=tuple(fronts["computation"]),
        verdict=(),
        failed=dict(failed or {}),
        timing=timing,
        pareto_front_milliseconds=tuple(fronts.get("milliseconds", ())),
    )
    return replace(comparison, verdict=tuple(comparison_verdict(comparison, fronts)))


def _unique_baselines(baselines: Iterator[tuple[str, Point, Tensor]]) -> list[tuple[Point, Tensor]]:
    """Remove duplicate baselines, and label the others by a cost of as many digits as they need.

    Baselines that differ only in accuracy have the gate in their label, too.
    """
    unique: dict[tuple[object, ...], tuple[str, Point, Tensor]] = {}
    for gate, point, correct in baselines:
        key = (point.family, point.accuracy, point.computation)
        unique.setdefault(key, (gate, point, correct))

    def label(point: Point, digits: int) -> str:
        return f"{point.family} at {point.computation.mean:.{digits}g} %"

    counts = [Counter(label(point, d) for _, point, _ in unique.values()) for d in _DIGITS]
    named = []
    for gate, point, correct in unique.values():
        candidates = [label(point, digits) for digits in _DIGITS]
        alone = [text for text, n in zip(candidates, counts, strict=True) if n[text] == 1]
        text = alone[0] if alone else f"{candidates[0]}, for {gate}"
        named.append((replace(point, label=text), correct))
    return named


def _point(group: Sequence[EvaluatedRun], key: str, **fields: Any) -> Point:  # noqa: ANN401
    """Return the point of one method of all seeds; ``fields`` are the others of ``Point``."""

    def means(results: Sequence[PerImageResults], name: str) -> list[float]:
        return [float(getattr(result, name).double().mean()) for result in results]

    reported = [run.reported[key] for run in group]
    chosen = [run.selection[key] for run in group]
    if all(run.summary.timing is not None for run in group):
        fields["milliseconds"] = spread(means(reported, "milliseconds"))
        fields["selection_milliseconds"] = statistics.fmean(means(chosen, "milliseconds"))
    return Point(
        runs=tuple(run.path for run in group),
        seeds=tuple(int(str(run.settings.get("seed", 0))) for run in group),
        budget=cast("float | None", group[0].settings.get("budget")),
        accuracy=spread([100.0 * share for share in means(reported, "correct")]),
        computation=spread(means(reported, "computation")),
        selection_accuracy=statistics.fmean(100.0 * v for v in means(chosen, "correct")),
        selection_computation=statistics.fmean(means(chosen, "computation")),
        complexity=max(_complexity(run, key) for run in group),
        **fields,
    )


def _gate_point(label: str, family: str, group: Sequence[EvaluatedRun]) -> Point:
    patterns = spread([run.summary.methods[0].patterns for run in group])
    point = _point(group, GATE, label=label, kind=GATE, family=family, patterns=patterns)
    methods = group[0].summary.methods
    allowed = with_cost_tolerance(point.computation.mean)
    uniform = [m.key for m in methods if m.role == "fixed" and m.computation <= allowed]
    better_than_uniform = all(_gain_over(group, key)[1] for key in uniform)
    gains: dict[str, Spread] = {}
    better_than, tied = [], []
    for key in [m.key for m in methods if m.role == "matched" and not m.key.endswith(BEFORE)]:
        if all(key in run.reported for run in group):
            gains[key], is_better, is_tied = _gain_over(group, key)
            if is_tied:
                tied.append(key)
            elif is_better and (better_than_uniform or key not in DEPLOYABLE_BASELINES):
                better_than.append(key)
    return replace(point, gains=gains, better_than=tuple(better_than), tied=tuple(tied))


def _gain_over(group: Sequence[EvaluatedRun], key: str) -> tuple[Spread, bool, bool]:
    """Return the gain over a baseline, if it is significant, and if images show no difference."""
    results = [(run.reported[GATE], run.best_reported(key)) for run in group]
    changes = [ours.correct.double() - theirs.correct.double() for ours, theirs in results]
    gain = spread([100.0 * float(change.mean()) for change in changes])
    images = paired_difference(*map(_mean_correct, zip(*results, strict=True)))
    return gain, gain.is_significant and images.low > 0, images.low <= 0 <= images.high


def _baseline_point(run: EvaluatedRun, key: str) -> Point:
    """Return the point of a baseline of one run: only one seed's baseline is deployed."""
    by_key, kind = run.summary.by_key, key.removesuffix(BEFORE)
    cotrained = run.is_cotrained and key == kind
    label = by_key.get(kind, by_key[key]).label + (_ON_COTRAINED if cotrained else "")
    return _point([run], key, label=label, kind=kind, family=label, cotrained=cotrained)


def _complexity(run: EvaluatedRun, key: str) -> int:
    """Return the complexity of a method of a run, as defined in ``Point``."""
    method = run.summary.by_key[key]
    if key == GATE and method.patterns == 1:  # the gate is a static bit table
        return sum(max(shares) > 0 for shares in zip(*run.summary.histogram, strict=True))
    if method.table is not None:
        return len(set(method.table))
    return _LEARNED if key == GATE else _BOX_LINE


def _front(
    points: Sequence[Point], correct: Mapping[str, Tensor], cost: CostName
) -> dict[str, list[str]]:
    """Return the labels recommended as the allowed cost grows, with those of the tied points."""
    front: dict[str, list[str]] = {}
    for allowed in sorted({point.selection_cost(cost) for point in points}):
        within = [point for point in points if point.selection_cost(cost) <= allowed]
        best, *tied = select_points(within, correct, cost)
        front.setdefault(best.label, [point.label for point in tied])
    return front


def _pairs(named: Groups, gates: Sequence[Point]) -> Iterator[Pair]:
    """Yield the differences between gates whose costs are equal within 5 %, on the same images."""
    for pair in itertools.combinations(gates, 2):
        first, second = pair
        budgets = {first.budget, second.budget} - {None}
        if first.family == second.family or len(budgets) > 1:
            continue  # points of one curve, or gates of different budgets
        less, more = sorted(map(_cost, pair))
        if more <= with_cost_tolerance(less):
            groups = (named[gate.label] for gate in pair)
            correct = (_mean_correct([run.reported[GATE] for run in group]) for group in groups)
            difference = paired_difference(*correct)
            yield Pair(first=first.label, second=second.label, **difference._asdict())


def _difficulty(
    run: EvaluatedRun, gates: Sequence[Point], named: Groups
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[ComputationByDifficulty, ...]]:
    """Return the difficulty classes, the share of images in each, and the gates' costs there.

    The class of an image is the cheapest uniform setting that is right, apart from the one that
    skips every layer.
    """
    fixed = [m for m in run.summary.methods if m.role == "fixed" and m.key != _SKIP_ALL]
    fixed.sort(key=lambda method: method.computation)
    correct = torch.stack([run.reported[m.key].correct > 0 for m in fixed])
    last = torch.ones(1, correct.shape[1], dtype=torch.bool)
    class_of_image = torch.cat([correct, last]).int().argmax(dim=0)
    classes = (*(m.label for m in fixed), "none is right")
    counts = torch.bincount(class_of_image, minlength=len(classes))
    found = []
    for gate in gates:
        costs = [one.reported[GATE].computation for one in named[gate.label]]
        mean = torch.stack(costs).double().mean(dim=0)  # [n]
        relative = tuple(
            float(mean[class_of_image == i].mean() / mean.mean()) if n >= _MIN_IMAGES else None
            for i, n in enumerate(counts.tolist())
        )
        found.append(
            ComputationByDifficulty(label=gate.label, family=gate.family, relative=relative)
        )
    return classes, tuple((counts.double() / len(class_of_image)).tolist()), tuple(found)


def _training_cost(label: str, family: Sequence[EvaluatedRun]) -> TrainingCost:
    """Return the training cost of gates; a run evaluated at several budgets counts once."""
    trained = {run.path: run for run in family}.values()
    seconds = [run.seconds for run in trained if run.seconds is not None]
    return TrainingCost(
        label=label,
        trainings=len(trained),
        images=sum(run.images_seen for run in trained),
        seconds=sum(seconds) if len(seconds) == len(trained) else None,
    )


def _mean_correct(results: Sequence[PerImageResults]) -> Tensor:
    """Return the share of seeds that are correct on each image, ``[n]``."""
    return torch.stack([result.correct for result in results]).mean(dim=0)


def _cost(point: Point) -> float:
    return point.computation.mean


def _curve_point(point: Point) -> CurvePoint:
    return CurvePoint(point.computation.mean, point.accuracy.mean)
