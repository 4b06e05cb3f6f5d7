"""Comparison of finished runs: points over seeds, paired differences and recommendations."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

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
from dfs_rl.evaluation.comparison_summary import comparison_verdict, is_significant_over_seeds
from dfs_rl.evaluation.curves import CurvePoint, hypervolume_reference_point
from dfs_rl.evaluation.grouping import (
    BUDGETS,
    Groups,
    check_comparable,
    group_by_family,
    group_by_gate,
    point_key,
)
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.pareto import curve_pairs, pareto_curves
from dfs_rl.evaluation.verdict import with_cost_tolerance

_SKIP_ALL = "uniform_0"
"""Key of the uniform setting that skips every layer, a reference that nobody deploys."""
_MIN_IMAGES = 10
"""Smallest number of images in a difficulty class whose mean computation is reported."""
_ON_COTRAINED = " on the co-trained backbone"
"""Suffix of the names of baselines and uniform settings on the co-trained backbone."""
_BOX_LINE, _LEARNED = 100, 101
"""Complexities of a cascade or exits, and of a gate; larger than that of any static bit table."""
_DIGITS = (3, 4, 5)
"""Candidate numbers of significant digits of the cost in a baseline's label."""


def compare_runs(
    runs: Sequence[EvaluatedRun], failed: Mapping[str, str] | None = None
) -> ComparisonOfRuns:
    """Compare runs; runs that differ only in the seed form one gate.

    Args:
        runs: Runs with the same data, split, bit options and backbone, at least one.
        failed: Reason of each run that could not be evaluated, by the run, for the report.

    Returns:
        Figures of the comparison.

    Raises:
        DataError: If the runs cannot be compared or a gate has the same seed twice.
    """
    check_comparable(runs)
    named = group_by_gate(runs)
    families = group_by_family(runs)
    family_of = {
        (run.path, point_key(run)): label for label, family in families.items() for run in family
    }
    gates = [
        replace(_gate_point(label, group), family=family_of[group[0].path, point_key(group[0])])
        for label, group in named.items()
    ]
    baselines = [
        (label, _baseline_point(key, group), _on_selection(group[:1], key))
        for label, group in named.items()
        for name in DEPLOYABLE_BASELINES
        for key in (name, f"{name}{BEFORE}")
        if key in group[0].results.reported
    ]
    unique = _with_unique_labels(baselines)
    points = sorted(
        [*gates, *(point for point, _ in unique)], key=lambda point: point.computation.mean
    )
    plain = next((run for run in runs if not run.is_cotrained), runs[0])
    references = _references(plain)
    running = [point for point in references if point.kind != _SKIP_ALL]
    correct = {
        **{gate.label: _on_selection(named[gate.label], GATE) for gate in gates},
        **{point.label: theirs for point, theirs in unique},
        **{point.label: _on_selection([plain], point.kind) for point in running},
    }
    pareto_front = _pareto_front([*running, *points], correct)
    about = runs[0].summary
    reference_point = hypervolume_reference_point(
        [_curve_point(point) for point in running],
        [_curve_point(point) for point in references if point.kind == _SKIP_ALL],
        [_curve_point(gate) for gate in gates],
    )
    all_curves = list(pareto_curves(families, reference_point))
    curves = tuple(method.curve() for method in all_curves)
    curve_differences = tuple(curve_pairs(all_curves))
    classes, class_of_image = _image_difficulty(runs[0])
    counts = torch.bincount(class_of_image, minlength=len(classes)).double()
    pairs = tuple(_pairs(named, gates))
    settings = (run.settings.get(name) for run in runs for name in BUDGETS)
    asked = sorted({float(str(budget)) for budget in settings if budget is not None})
    budgets = results_at_budgets(asked, points, running, correct)
    return ComparisonOfRuns(
        dataset=about.dataset,
        split=about.split,
        n=about.n,
        options=about.options,
        cost_model=about.cost_model,
        points=tuple(points),
        references=tuple(references),
        budgets=budgets,
        pairs=pairs,
        curves=curves,
        curve_pairs=curve_differences,
        reference_accuracy=reference_point.accuracy,
        reference_computation=reference_point.computation,
        trainings=tuple(_trainings(families)),
        difficulty=classes,
        difficulty_shares=tuple((counts / len(class_of_image)).tolist()),
        computation_by_difficulty=tuple(
            _computation_by_difficulty(gate, named[gate.label], class_of_image, len(classes))
            for gate in gates
        ),
        pareto_front=tuple(point.label for point, *_ in pareto_front),
        verdict=tuple(
            comparison_verdict(
                points=[*points, *running],
                pareto_front=pareto_front,
                budgets=budgets,
                curves=curves,
                curve_pairs=curve_differences,
            )
        ),
        failed=dict(failed or {}),
    )


def _with_unique_labels(
    baselines: Sequence[tuple[str, Point, Tensor]],
) -> list[tuple[Point, Tensor]]:
    """Remove duplicate baselines and label the others by their cost.

    The cost has as many digits as a unique label needs. Baselines that differ only in accuracy
    have the gate in their label, too.
    """
    different: dict[tuple[object, ...], tuple[str, Point, Tensor]] = {}
    for gate, point, correct in baselines:
        key = (point.family, point.accuracy, point.computation)
        different.setdefault(key, (gate, point, correct))

    def label(point: Point, digits: int) -> str:
        return f"{point.family} at {point.computation.mean:.{digits}g} %"

    named = []
    for gate, point, correct in different.values():
        others = [other for _, other, _ in different.values() if other is not point]
        unique = [d for d in _DIGITS if label(point, d) not in {label(o, d) for o in others}]
        suffix = "" if unique else f", for {gate}"
        named.append((replace(point, label=label(point, (unique or _DIGITS)[0]) + suffix), correct))
    return named


def _gate_point(label: str, group: Sequence[EvaluatedRun]) -> Point:
    gains: dict[str, Spread] = {}
    better_than, tied = [], []
    patterns = spread([run.summary.methods[0].patterns for run in group])
    point = _point(label, GATE, group, patterns=patterns, gains=gains)
    uniform = [
        method.key
        for method in group[0].summary.methods
        if method.role == "fixed"
        and method.computation <= with_cost_tolerance(point.computation.mean)
    ]
    better_than_uniform = all(_gain_over(group, key)[1] for key in uniform)
    matched = [m.key for m in group[0].summary.methods if m.role == "matched"]
    for key in matched:
        if not key.endswith(BEFORE) and all(key in run.results.reported for run in group):
            gains[key], is_better, is_tied = _gain_over(group, key)
            if is_tied:
                tied.append(key)
            elif is_better and (better_than_uniform or key not in DEPLOYABLE_BASELINES):
                better_than.append(key)
    return replace(point, better_than=tuple(better_than), tied=tuple(tied))


def _gain_over(group: Sequence[EvaluatedRun], key: str) -> tuple[Spread, bool, bool]:
    """Compare a gate with a baseline.

    Returns:
        Gain in accuracy over seeds, whether it is significant over seeds and images, and whether
        the images show no difference.
    """
    baselines = [run.best_reported(key).correct for run in group]
    gain = spread(
        [
            100.0 * float((run.results.reported[GATE].correct.double() - theirs.double()).mean())
            for run, theirs in zip(group, baselines, strict=True)
        ]
    )
    images = paired_difference(_mean_correct(group), torch.stack(baselines).mean(dim=0))
    better = is_significant_over_seeds(gain) and images.low > 0
    return gain, better, images.low <= 0 <= images.high


def _point(
    label: str,
    key: str,
    group: Sequence[EvaluatedRun],
    *,
    patterns: Spread | None,
    gains: Mapping[str, Spread],
) -> Point:
    results = [run.results.reported[key] for run in group]
    chosen = [run.results.selection[key] for run in group]
    return Point(
        label=label,
        kind=key,
        family=label,
        runs=tuple(run.path for run in group),
        seeds=tuple(int(str(run.settings.get("seed", 0))) for run in group),
        budget=cast("float | None", group[0].settings.get("budget")),
        accuracy=spread([100.0 * float(o.correct.double().mean()) for o in results]),
        computation=spread([float(o.computation.double().mean()) for o in results]),
        selection_accuracy=statistics.fmean(
            100.0 * float(o.correct.double().mean()) for o in chosen
        ),
        selection_computation=statistics.fmean(
            float(o.computation.double().mean()) for o in chosen
        ),
        patterns=patterns,
        gains=gains,
        complexity=max(_complexity(run, key) for run in group),
    )


def _on_selection(group: Sequence[EvaluatedRun], key: str) -> Tensor:
    """Return the share of correct predictions per image of the selection split, ``[n]``."""
    return torch.stack([run.results.selection[key].correct for run in group]).mean(dim=0)


def _complexity(run: EvaluatedRun, key: str) -> int:
    """Return the complexity of a method of a run, as defined in ``Point``."""
    method = run.summary.method(key)
    assert method is not None, "a summary and its outcomes cover the same methods"
    if key == GATE and method.patterns == 1:  # the gate is a static bit table
        return sum(max(shares) > 0 for shares in zip(*run.summary.histogram, strict=True))
    if method.table is not None:
        return len(set(method.table))
    return _LEARNED if key == GATE else _BOX_LINE


def _baseline_point(key: str, group: Sequence[EvaluatedRun]) -> Point:
    """Return the point of a baseline at the cost of one gate.

    Only the baseline of the first seed counts: each seed has a different baseline, and only one of
    them is deployed.
    """
    method = group[0].summary.method(key)
    assert method is not None, "a summary and its outcomes cover the same methods"
    name = key.removesuffix(BEFORE)
    base = group[0].summary.method(name)
    label = method.label if base is None else base.label
    cotrained = group[0].is_cotrained and not key.endswith(BEFORE)
    point = _point(method.label, key, group[:1], patterns=None, gains={})
    family = f"{label}{_ON_COTRAINED}" if cotrained else label
    return replace(point, kind=name, family=family, cotrained=cotrained)


def _references(run: EvaluatedRun) -> list[Point]:
    """Return the points of the uniform settings, cheapest first.

    The settings are identical in all runs without co-training.
    """
    cotrained = run.is_cotrained
    suffix = _ON_COTRAINED if cotrained else ""
    points = [
        _point(f"{m.label}{suffix}", m.key, [run], patterns=None, gains={})
        for m in run.summary.methods
        if m.role == "fixed"
    ]
    points.sort(key=lambda point: point.computation.mean)
    return [replace(point, cotrained=cotrained) for point in points]


def _pareto_front(points: Sequence[Point], correct: Mapping[str, Tensor]) -> list[list[Point]]:
    """Return the recommended points as the allowed computation on the selection split grows.

    Each point is followed by the points that are statistically tied with it.
    """
    kept: list[list[Point]] = []
    for cost in sorted({point.selection_computation for point in points}):
        tied = select_points([p for p in points if p.selection_computation <= cost], correct)
        if tied[0] not in [taken for taken, *_ in kept]:
            kept.append(tied)
    return kept


def _pairs(named: Mapping[str, Sequence[EvaluatedRun]], gates: Sequence[Point]) -> Iterator[Pair]:
    """Yield the differences between gates whose costs are equal within 5 %, on the same images."""
    for first, second in itertools.combinations(gates, 2):
        budgets = {first.budget, second.budget} - {None}
        if first.family == second.family or len(budgets) > 1:
            continue  # points of one curve, or gates of different budgets
        less, more = sorted(gate.computation.mean for gate in (first, second))
        if more > with_cost_tolerance(less):
            continue
        difference = paired_difference(*(_mean_correct(named[g.label]) for g in (first, second)))
        yield Pair(
            first=first.label,
            second=second.label,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
        )


def _curve_point(point: Point) -> CurvePoint:
    return CurvePoint(point.computation.mean, point.accuracy.mean)


def _image_difficulty(run: EvaluatedRun) -> tuple[tuple[str, ...], Tensor]:
    """Return the difficulty classes, and the class of each reported image, int64 ``[n]``.

    The class of an image is the cheapest uniform setting that classifies it correctly, apart from
    the setting that skips every layer. It does not depend on a gate.
    """
    fixed = [m for m in run.summary.methods if m.role == "fixed" and m.key != _SKIP_ALL]
    cheapest_first = sorted(fixed, key=lambda m: m.computation)
    correct = torch.stack([run.results.reported[m.key].correct > 0 for m in cheapest_first])
    last = torch.ones(1, correct.shape[1], dtype=torch.bool)
    first_correct = torch.cat([correct, last]).int().argmax(dim=0)
    return (*(m.label for m in cheapest_first), "none is right"), first_correct


def _computation_by_difficulty(
    gate: Point, group: Sequence[EvaluatedRun], class_of_image: Tensor, n_classes: int
) -> ComputationByDifficulty:
    costs = torch.stack([run.results.reported[GATE].computation for run in group]).double()
    mean = costs.mean(dim=0)  # [n]
    members = [mean[class_of_image == i] for i in range(n_classes)]
    relative = (float(m.mean() / mean.mean()) if len(m) >= _MIN_IMAGES else None for m in members)
    return ComputationByDifficulty(label=gate.label, family=gate.family, relative=tuple(relative))


def _trainings(families: Groups) -> Iterator[TrainingCost]:
    """Yield the training cost of each kind of gate.

    A run evaluated at several budgets counts once.
    """
    for label, family in families.items():
        trained = list({run.path: run for run in family}.values())
        seconds = [run.seconds for run in trained if run.seconds is not None]
        yield TrainingCost(
            label=label,
            trainings=len(trained),
            images=sum(run.images_seen for run in trained),
            seconds=sum(seconds) if len(seconds) == len(trained) else None,
        )


def _mean_correct(group: Sequence[EvaluatedRun]) -> Tensor:
    """Return the share of seeds whose gate classifies each reported image correctly, ``[n]``."""
    return torch.stack([run.results.reported[GATE].correct for run in group]).mean(dim=0)
