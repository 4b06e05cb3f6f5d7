"""Finished runs side by side: seeds of one gate become a point with a spread, points are paired, and one is the one to ship."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfs_rl.errors import DataError
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.outcomes import Outcomes
from dfs_rl.evaluation.summary import EvaluationSummary
from dfs_rl.evaluation.verdict import SAME_COST

GATE = "gate"
RIVALS = ("static_table", "cascade", "random", "patterns")
"""The rivals that every gate has at its own cost; the mode table is left to each run's own report."""
_BEFORE = "_before"
_SKIP_ALL = "uniform_0"
_ALTERNATIVES = ("static_table", "cascade")
"""The rivals that one could ship instead of a gate."""
_UNTOLD = ("seed", "run_dir", "device", "threads", "dataset", "backbone", "eval_every")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedRun:
    """A run with what its evaluation found.

    Attributes:
        path: Its folder, as the user named it.
        settings: Its configuration, flat, by dotted name.
        command: The command line that made it.
        backbone: Digest of the backbone's weights, before co-training if there was any.
        summary: Figures of its gate and rivals.
        outcomes: What each of them did with every image.
    """

    path: str
    settings: Mapping[str, object]
    command: Sequence[str]
    backbone: str
    summary: EvaluationSummary
    outcomes: Outcomes


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: Its mean.
        deviation: Its standard deviation, None for a single seed.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One gate, over its seeds.

    Attributes:
        label: What tables and plots call it.
        kind: ``"gate"``, or the key of a rival for a point that is one.
        runs: Folders of its runs.
        seeds: Their seeds.
        accuracy: In percent.
        computation: Mean over images in percent, everything included.
        selection_accuracy: Mean accuracy on the selection split, by which points are chosen.
        selection_computation: Mean computation there.
        patterns: Distinct bit patterns; of rivals None.
        gains: Accuracy minus that of each rival at the same cost, in points, by the rival's key; empty for rivals.
    """

    label: str
    kind: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    accuracy: Spread
    computation: Spread
    selection_accuracy: float
    selection_computation: float
    patterns: Spread | None
    gains: Mapping[str, Spread]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two gates at about the same cost.

    Attributes:
        first: Label of the one.
        second: Label of the other.
        difference: Accuracy of the first minus that of the second, mean over their seeds, in points.
        low: Lower end of the 95 % interval over images.
        high: Upper end of it.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All figures of a comparison of runs.

    Attributes:
        dataset: Name of the data set.
        split: The reported split.
        n: Its number of images.
        options: The menu of bits.
        points: Gates and their rivals, cheapest first.
        references: Uniform settings and full precision, cheapest first.
        pairs: Gates that cost about the same, each with each.
        frontier: Labels of the points, references among them, that no other point beats in both accuracy and computation on
            the selection split, cheapest first. The reported split has no part in this choice.
        verdict: What to ship, in sentences.
        failed: Runs that could not be evaluated, each with its reason.
    """

    dataset: str
    split: str
    n: int
    options: tuple[int, ...]
    points: tuple[Point, ...]
    references: tuple[Point, ...]
    pairs: tuple[Pair, ...]
    frontier: tuple[str, ...]
    verdict: tuple[str, ...]
    failed: Mapping[str, str]


def check_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Refuse runs that cannot stand in one table.

    Raises:
        DataError: If images, split, menu or backbone differ.
    """
    for run in runs[1:]:
        first = runs[0]
        for what, ours, theirs in (
            ("images", first.summary.fingerprint, run.summary.fingerprint),
            ("a split", first.summary.split, run.summary.split),
            ("a menu", list(first.summary.options), list(run.summary.options)),
            ("a backbone", first.backbone, run.backbone),
        ):
            if ours != theirs:
                raise DataError(
                    f"{run.path} cannot be compared with {first.path}: it has {what} of its own ({theirs}, not {ours})."
                )


def compare_runs(
    runs: Sequence[EvaluatedRun], failed: Mapping[str, str] | None = None
) -> Comparison:
    """Put runs side by side; those that differ in nothing but the seed are one gate.

    Args:
        runs: At least one, of the same data, split, menu and backbone.
        failed: Runs that could not be evaluated, each with its reason, to be told of.

    Raises:
        DataError: If they are not.
    """
    check_comparable(runs)
    groups: dict[tuple[object, ...], list[EvaluatedRun]] = {}
    for run in runs:
        told = sorted((k, repr(v)) for k, v in run.settings.items() if k not in _UNTOLD)
        key = (run.summary.methods[0].label, *told)
        groups.setdefault(key, []).append(run)
    labels = _labels([group[0] for group in groups.values()])
    named = dict(zip(labels, groups.values(), strict=True))
    gates = [_gate_point(label, group) for label, group in named.items()]
    rivals = [
        _rival_point(key, group)
        for group in named.values()
        for name in _ALTERNATIVES
        for key in (name, f"{name}{_BEFORE}")
        if key in group[0].outcomes.reported
    ]
    points = sorted([*gates, *rivals], key=lambda point: point.computation.mean)
    references = _references(next((run for run in runs if not _is_cotrained(run)), runs[0]))
    running = [point for point in references if point.kind != _SKIP_ALL]
    frontier = _frontier([*points, *running])
    about = runs[0].summary
    pairs = tuple(_pairs(named, gates))
    return Comparison(
        dataset=about.dataset,
        split=about.split,
        n=about.n,
        options=about.options,
        points=tuple(points),
        references=tuple(references),
        pairs=pairs,
        frontier=tuple(point.label for point in frontier),
        verdict=tuple(_verdict(gates, frontier, pairs)),
        failed=dict(failed or {}),
    )


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation)


def _labels(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Name each gate by its kind and by every setting in which it differs from another one of that kind."""
    kinds = [run.summary.methods[0].label for run in runs]
    labels = []
    for run, kind in zip(runs, kinds, strict=True):
        others = [other for other, k in zip(runs, kinds, strict=True) if k == kind]
        differing = sorted(
            name
            for name in run.settings
            if name not in _UNTOLD
            and any(other.settings.get(name) != run.settings[name] for other in others)
        )
        told = [f"{name.replace('_', ' ')} {run.settings[name]}" for name in differing]
        labels.append(", ".join([kind, *told]))
    return labels


def _gate_point(label: str, group: Sequence[EvaluatedRun]) -> Point:
    gains = {}
    for key in RIVALS:
        if all(key in run.outcomes.reported for run in group):
            gains[key] = spread([_gain(run, key) for run in group])
    patterns = spread([run.summary.methods[0].patterns for run in group])
    return _point(label, GATE, group, patterns=patterns, gains=gains)


def _gain(run: EvaluatedRun, key: str) -> float:
    """Accuracy of a run's gate minus a rival's, in points.

    A co-trained gate has two of each rival; the one that is better on the selection split counts.
    """
    candidates = [k for k in (key, f"{key}{_BEFORE}") if k in run.outcomes.selection] or [key]
    rival = max(candidates, key=lambda k: _selection_accuracy(run, k) if len(candidates) > 1 else 0)
    ours, theirs = (run.outcomes.reported[k].correct.double() for k in (GATE, rival))
    return 100.0 * float((ours - theirs).mean())


def _selection_accuracy(run: EvaluatedRun, key: str) -> float:
    return float(run.outcomes.selection[key].correct.double().mean())


def _is_cotrained(run: EvaluatedRun) -> bool:
    return any(key.endswith(_BEFORE) for key in run.outcomes.reported)


def _point(
    label: str,
    key: str,
    group: Sequence[EvaluatedRun],
    *,
    patterns: Spread | None,
    gains: Mapping[str, Spread],
) -> Point:
    outcomes = [run.outcomes.reported[key] for run in group]
    chosen = [run.outcomes.selection[key] for run in group]
    return Point(
        label=label,
        kind=key,
        runs=tuple(run.path for run in group),
        seeds=tuple(int(str(run.settings.get("seed", 0))) for run in group),
        accuracy=spread([100.0 * float(o.correct.double().mean()) for o in outcomes]),
        computation=spread([float(o.computation.double().mean()) for o in outcomes]),
        selection_accuracy=statistics.fmean(
            100.0 * float(o.correct.double().mean()) for o in chosen
        ),
        selection_computation=statistics.fmean(
            float(o.computation.double().mean()) for o in chosen
        ),
        patterns=patterns,
        gains=gains,
    )


def _rival_point(key: str, group: Sequence[EvaluatedRun]) -> Point:
    """A rival at the cost of one gate, over that gate's seeds."""
    method = group[0].summary.method(key)
    assert method is not None, "a summary and its outcomes cover the same methods"
    name = key.removesuffix(_BEFORE)
    base = group[0].summary.method(name)
    label = method.label if base is None else base.label
    if _is_cotrained(group[0]) and not key.endswith(_BEFORE):
        label += " on the co-trained backbone"
    point = _point(method.label, key, group, patterns=None, gains={})
    return replace(point, kind=name, label=f"{label} at {point.computation.mean:.3g} %")


def _references(run: EvaluatedRun) -> list[Point]:
    """Uniform settings of the backbone, which are the same in every run."""
    fixed = [m for m in run.summary.methods if m.role == "fixed"]
    points = [_point(m.label, m.key, [run], patterns=None, gains={}) for m in fixed]
    return sorted(points, key=lambda point: point.computation.mean)


def _frontier(points: Sequence[Point]) -> list[Point]:
    """The points that are more accurate than every cheaper one on the selection split, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.selection_computation, -p.selection_accuracy)):
        if not kept or point.selection_accuracy > kept[-1].selection_accuracy:
            kept.append(point)
    return kept


def _pairs(named: Mapping[str, Sequence[EvaluatedRun]], gates: Sequence[Point]) -> Iterator[Pair]:
    """Compare the gates whose costs differ by at most 5 %, on the same images."""
    for first, second in itertools.combinations(gates, 2):
        ratio = first.computation.mean / second.computation.mean
        if not 1 / (1 + SAME_COST) <= ratio <= 1 + SAME_COST:
            continue
        difference = paired_difference(*(_mean_correct(named[g.label]) for g in (first, second)))
        yield Pair(
            first=first.label,
            second=second.label,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
        )


def _mean_correct(group: Sequence[EvaluatedRun]) -> Tensor:
    """How often each image was right over the seeds, ``[n]``."""
    return torch.stack([run.outcomes.reported[GATE].correct for run in group]).mean(dim=0)


def _verdict(
    gates: Sequence[Point], frontier: Sequence[Point], pairs: Sequence[Pair]
) -> Iterator[str]:
    """Say what to ship at which cost, and what the gates are worth."""
    listed = "; ".join(
        f"from {p.computation.mean:.3g} % computation on, {p.label} ({p.accuracy.mean:.2f} %)"
        for p in frontier
    )
    yield f"To ship, chosen on val: {listed}."
    for key, name in (("static_table", "best static table"), ("cascade", "confidence cascade")):
        above = "; ".join(g.label for g in gates if key in g.gains and is_above(g.gains[key]))
        yield (
            f"Above the {name} of the same cost by more than two standard deviations over seeds: {above or 'no gate'}."
        )
    for pair in pairs:
        if pair.low > 0 or pair.high < 0:
            better, worse = (pair.first, pair.second) if pair.low > 0 else (pair.second, pair.first)
            yield f"At about the same cost {better} is {abs(pair.difference):.2f} points above {worse}, beyond chance over images."


def is_above(gain: Spread) -> bool:
    """Whether a gain is more than twice its standard deviation over seeds; a single seed cannot show it."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
