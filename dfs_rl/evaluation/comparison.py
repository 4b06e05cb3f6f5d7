"""Comparison of finished runs: points over seeds, paired differences and recommendations."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from dfs_rl.errors import DataError
from dfs_rl.evaluation.budgets import results_at_budgets, select_points
from dfs_rl.evaluation.comparison_records import (
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
from dfs_rl.evaluation.metrics import PairedDifference, paired_difference
from dfs_rl.evaluation.pareto import ParetoCurve, curve_pairs
from dfs_rl.evaluation.per_image_results import PerImageResults
from dfs_rl.evaluation.verdict import with_cost_tolerance

MATCHED_COST_BASELINES = ("static_table", "cascade", "exits", "mode_table", "random", "patterns")
"""Keys of the baselines at the gate's cost; a network without exits has no ``exits``."""
_SKIP_ALL = "uniform_0"
"""Key of the uniform setting that skips every layer, a reference that nobody deploys."""
_MIN_IMAGES = 10
"""Smallest number of images in a difficulty class whose mean computation is reported."""
_BUDGETS = ("budget", "per_input_budget")
_POINT_SETTINGS = (*_BUDGETS, "cost_weight")
"""Settings that distinguish the points of a gate's curve."""
_BEFORE = "_before"
"""Suffix of the keys of baselines on the backbone before co-training."""
_ON_COTRAINED = " on the co-trained backbone"
"""Suffix of the names of baselines and uniform settings on the co-trained backbone."""
_DEPLOYABLE_BASELINES = ("static_table", "cascade", "exits")
"""Keys of the baselines that can be deployed instead of a gate."""
_BOX_LINE, _LEARNED = 100, 101
"""Complexities of a cascade or exits, and of a gate; larger than that of any static bit table."""
_DIGITS = (3, 4, 5)
"""Candidate numbers of significant digits of the cost in a baseline's label."""
_IGNORED_SETTINGS = (
    "seed",
    "run_dir",
    "device",
    "threads",
    "dataset",
    "backbone",
    "checkpoint_every",
)
"""Settings that do not distinguish gates: the seed, and settings of where and how a run runs.

Data and backbone are compared by content.
"""


def check_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Check that runs can be compared.

    Raises:
        DataError: If images, split, bit options or backbone differ.
    """
    for run in runs[1:]:
        first = runs[0]
        for what, ours, theirs in (
            ("image fingerprint", first.summary.fingerprint, run.summary.fingerprint),
            ("split", first.summary.split, run.summary.split),
            ("list of bit options", list(first.summary.options), list(run.summary.options)),
            ("backbone digest", first.backbone, run.backbone),
        ):
            if ours != theirs:
                raise DataError(
                    f"{run.path} cannot be compared with {first.path}: its {what} is {theirs}, "
                    f"not {ours}."
                )


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
    named = _grouped(runs, ignored=_IGNORED_SETTINGS)
    for label, group in named.items():
        _check_seeds(label, group)
    family_of = {
        (run.path, _point_key(run)): label
        for label, family in _families(runs).items()
        for run in family
    }
    gates = [
        replace(_gate_point(label, group), family=family_of[group[0].path, _point_key(group[0])])
        for label, group in named.items()
    ]
    baselines = [
        (label, _baseline_point(key, group), _on_selection(group[:1], key))
        for label, group in named.items()
        for name in _DEPLOYABLE_BASELINES
        for key in (name, f"{name}{_BEFORE}")
        if key in group[0].results.reported
    ]
    unique = _with_unique_labels(baselines)
    points = sorted(
        [*gates, *(point for point, _ in unique)], key=lambda point: point.computation.mean
    )
    plain = next((run for run in runs if not _is_cotrained(run)), runs[0])
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
    pareto_curves = list(_pareto_curves(runs, reference_point))
    curves = tuple(method.curve() for method in pareto_curves)
    curve_differences = tuple(curve_pairs(pareto_curves))
    classes, class_of_image = _image_difficulty(runs[0])
    counts = torch.bincount(class_of_image, minlength=len(classes)).double()
    pairs = tuple(_pairs(named, gates))
    settings = (run.settings.get(point_key) for run in runs for point_key in _BUDGETS)
    asked = {float(str(budget)) for budget in settings if budget is not None}
    budgets = results_at_budgets(sorted(asked), points, running, correct)
    return ComparisonOfRuns(
        dataset=about.dataset,
        split=about.split,
        n=about.n,
        options=about.options,
        points=tuple(points),
        references=tuple(references),
        budgets=budgets,
        pairs=pairs,
        curves=curves,
        curve_pairs=curve_differences,
        reference_accuracy=reference_point.accuracy,
        reference_computation=reference_point.computation,
        trainings=tuple(_trainings(runs)),
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


def _grouped(
    runs: Sequence[EvaluatedRun], *, ignored: Sequence[str]
) -> dict[str, list[EvaluatedRun]]:
    """Group the runs that differ only in ``ignored`` settings, by a distinctive label."""
    groups: dict[tuple[object, ...], list[EvaluatedRun]] = {}
    for run in runs:
        # None equals a missing setting, as in runs of versions without that setting.
        told = [(k, v) for k, v in run.settings.items() if k not in ignored and v is not None]
        key = (run.summary.methods[0].label, *sorted((k, repr(v)) for k, v in told))
        groups.setdefault(key, []).append(run)
    labels = _labels([group[0] for group in groups.values()], ignored=ignored)
    named = dict(zip(labels, groups.values(), strict=True))
    assert len(named) == len(groups), "labels name everything that groups differ in"
    return named


def _labels(runs: Sequence[EvaluatedRun], *, ignored: Sequence[str]) -> list[str]:
    """Label each gate by its kind and the settings that differ among gates of that kind."""
    kinds = [run.summary.methods[0].label for run in runs]
    labels = []
    for run, kind in zip(runs, kinds, strict=True):
        others = [other for other, k in zip(runs, kinds, strict=True) if k == kind]
        names = sorted({name for other in others for name in other.settings} - set(ignored))
        told = []
        for name in names:
            value = run.settings.get(name)
            if any(other.settings.get(name) != value for other in others):
                shown = (
                    "default" if value is None else f"{value:g}" if type(value) is float else value
                )
                told.append(f"{name.replace('_', ' ')} {shown}")
        labels.append(", ".join([kind, *told]))
    return labels


def _check_seeds(label: str, group: Sequence[EvaluatedRun]) -> None:
    """Check that no seed occurs twice, because duplicates bias the spread over seeds.

    Raises:
        DataError: If two runs have the same seed.
    """
    by_seed: dict[object, str] = {}
    for run in group:
        seed = run.settings.get("seed")
        if seed in by_seed:
            told = "" if seed is None else f", with the same seed {seed}"
            raise DataError(
                f"{run.path} and {by_seed[seed]} are the same gate, {label}{told}; leave one out."
            )
        by_seed[seed] = run.path


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
    better_than_uniform = all(_is_better(*_gain_over(group, key)) for key in uniform)
    for key in MATCHED_COST_BASELINES:
        if all(key in run.results.reported for run in group):
            gains[key], over_images = _gain_over(group, key)
            if over_images.low <= 0 <= over_images.high:
                tied.append(key)
            elif _is_better(gains[key], over_images) and (
                better_than_uniform or key not in _DEPLOYABLE_BASELINES
            ):
                better_than.append(key)
    return replace(point, better_than=tuple(better_than), tied=tuple(tied))


def _gain_over(group: Sequence[EvaluatedRun], key: str) -> tuple[Spread, PairedDifference]:
    """Compare a gate with a baseline, over the gate's seeds and over images."""
    theirs = torch.stack([_baseline_results(run, key).correct for run in group]).mean(dim=0)
    gain = spread([_gain(run, key) for run in group])
    return gain, paired_difference(_mean_correct(group), theirs)


def _is_better(gain: Spread, over_images: PairedDifference) -> bool:
    return is_significant_over_seeds(gain) and over_images.low > 0


def _gain(run: EvaluatedRun, key: str) -> float:
    """Return the accuracy of a run's gate minus that of a baseline, in points."""
    ours, theirs = run.results.reported[GATE].correct, _baseline_results(run, key).correct
    return 100.0 * float((ours.double() - theirs.double()).mean())


def _baseline_results(run: EvaluatedRun, key: str) -> PerImageResults:
    """Return the per-image results of a baseline on the reported split.

    A co-trained gate has each baseline before and after co-training; the more accurate one on the
    selection split counts.
    """
    keys = [k for k in (key, f"{key}{_BEFORE}") if k in run.results.selection]
    best = max(keys, key=lambda k: _selection_accuracy(run, k)) if len(keys) > 1 else key
    return run.results.reported[best]


def _selection_accuracy(run: EvaluatedRun, key: str) -> float:
    return float(run.results.selection[key].correct.double().mean())


def _is_cotrained(run: EvaluatedRun) -> bool:
    return any(key.endswith(_BEFORE) for key in run.results.reported)


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
    name = key.removesuffix(_BEFORE)
    base = group[0].summary.method(name)
    label = method.label if base is None else base.label
    cotrained = _is_cotrained(group[0]) and not key.endswith(_BEFORE)
    point = _point(method.label, key, group[:1], patterns=None, gains={})
    family = f"{label}{_ON_COTRAINED}" if cotrained else label
    return replace(point, kind=name, family=family, cotrained=cotrained)


def _references(run: EvaluatedRun) -> list[Point]:
    """Return the points of the uniform settings, cheapest first.

    The settings are identical in all runs without co-training.
    """
    cotrained = _is_cotrained(run)
    changed = _ON_COTRAINED if cotrained else ""
    points = (
        _point(f"{m.label}{changed}", m.key, [run], patterns=None, gains={})
        for m in run.summary.methods
        if m.role == "fixed"
    )
    told = (replace(point, cotrained=cotrained) for point in points)
    return sorted(told, key=lambda point: point.computation.mean)


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


def _pareto_curves(
    runs: Sequence[EvaluatedRun], reference_point: CurvePoint
) -> Iterator[ParetoCurve]:
    """Yield the curves of gates with several budgets or cost weights, and of their baselines."""
    for label, family in _families(runs).items():
        point_keys = sorted({_point_key(run) for run in family})
        if len(point_keys) == 1:
            continue
        seeds: dict[object, dict[tuple[str, ...], EvaluatedRun]] = {}
        for run in family:
            seeds.setdefault(run.settings.get("seed"), {})[_point_key(run)] = run
        # A missing point alone changes the hypervolume, so incomplete seeds are left out.
        whole = {
            seed: [by[point_key] for point_key in point_keys]
            for seed, by in seeds.items()
            if len(by) == len(point_keys)
        }
        if not whole:
            continue
        n_incomplete_seeds = len(seeds) - len(whole)
        for key in (GATE, *_DEPLOYABLE_BASELINES):
            # A baseline may be missing at some or all costs, see ``run_baselines``.
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
                results=[
                    [_method_results(group[i], key) for i in there] for group in whole.values()
                ],
                histograms=torch.tensor(
                    [[run.summary.histogram for run in group] for group in whole.values()]
                )
                if is_gate
                else None,
                reference_point=reference_point,
            )


def _families(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """Group the runs that differ only in seed and in budget or cost weight."""
    return _grouped(runs, ignored=(*_IGNORED_SETTINGS, *_POINT_SETTINGS))


def _point_key(run: EvaluatedRun) -> tuple[str, ...]:
    return tuple(repr(run.settings.get(point_key)) for point_key in _POINT_SETTINGS)


def _method_results(run: EvaluatedRun, key: str) -> PerImageResults:
    return run.results.reported[GATE] if key == GATE else _baseline_results(run, key)


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


def _trainings(runs: Sequence[EvaluatedRun]) -> Iterator[TrainingCost]:
    """Yield the training cost of each kind of gate.

    A run evaluated at several budgets counts once.
    """
    for label, family in _families(runs).items():
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
