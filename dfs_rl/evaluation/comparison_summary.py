"""Verdict of a comparison of runs in at most seven sentences."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from dfs_rl.costs import COMPUTATION
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Point
from dfs_rl.evaluation.timing import CostName

_MAX_NAMED = 3  # largest number of labels in a list
_CASCADE = "train_cascade --passes 2 --answer last --no-mirrored --stopping confidence"
"""Command that makes a gate of the baseline ``cascade``; its defaults allow more than that."""
_BASELINES = {
    "static_table": "static bit table",
    "cascade": "cascade",
    "tuned_rule": "tuned rule",
    "exits": "confidence exits",
}


def comparison_verdict(
    comparison: ComparisonOfRuns, tied: Mapping[CostName, Mapping[str, Sequence[str]]]
) -> Iterator[str]:
    """Yield the recommended points and the gates that are worse or better than their baselines.

    ``tied`` are the labels of the points tied on val with each point of a Pareto front.
    """
    by_label = {p.label: p for p in (*comparison.points, *comparison.references)}

    def front(labels: Sequence[str], cost: CostName, unit: str, digits: int) -> str:
        return "; ".join(
            f"from {by_label[label].cost(cost).mean:.{digits}g} {unit}: "
            f"{_text(by_label, label, tied[cost][label], cost, unit)}"
            for label in labels
        )

    if comparison.budgets:
        labels = [at.recommended for at in comparison.budgets if at.recommended is not None]
        listed = "; ".join(_at_budgets(comparison, by_label))
    else:
        labels = list(comparison.pareto_front)
        listed = front(labels, "computation", f"% {comparison.cost_model}", 3)
    yield f"Recommended on val, the simplest of tied methods: {listed}."
    # Rounded up, so that the budget admits the recommended cascade.
    cascades = dict.fromkeys(
        f"{math.ceil(1e4 * by_label[label].selection_computation) / 1e4:.10g}"
        for label in labels
        if by_label[label].kind == "cascade"
    )
    if cascades:
        cost = "" if comparison.cost_model == COMPUTATION else f" --cost {comparison.cost_model}"
        budgets = " or ".join(cascades)
        yield f"To use a recommended cascade, run {_CASCADE}{cost} --budget {budgets}."
    if comparison.timing is not None:
        listed = front(comparison.pareto_front_milliseconds, "milliseconds", "ms", 4)
        yield f"By measured time, likewise: {listed}."
    gates = [point for point in comparison.points if point.kind == GATE]
    keys = [key for key in _BASELINES if any(key in gate.gains for gate in gates)]
    if keys:
        worse = {key: [g.label for g in gates if _is_worse(g, key)] for key in keys}
        better = {key: [g.label for g in gates if key in g.better_than] for key in keys}
        if any(worse.values()):
            yield f"Gates significantly worse than their {_by_baseline(worse)}."
        yield f"Gates significantly better than their {_by_baseline(better)}."
    if gates and "cascade" not in keys:
        yield "No cascade is as cheap as a gate: a pass through the network costs more."
    curves = [curve for curve in comparison.curves if curve.baseline is None]
    if curves:
        best = max(curves, key=lambda curve: curve.hypervolume.mean)
        level = [
            pair.second if pair.first == best.label else pair.first
            for pair in comparison.curve_pairs
            if best.label in (pair.first, pair.second)
            and pair.interval.low <= 0 <= pair.interval.high
        ]
        suffix = f"; tied with {_listed(level)}" if level else ""
        yield f"Largest hypervolume: {best.label} with {best.hypervolume.mean:.2f}{suffix}."


def _at_budgets(comparison: ComparisonOfRuns, by_label: Mapping[str, Point]) -> Iterator[str]:
    """Yield the recommended point at each budget, once for consecutive equal ones."""
    for (label, tied), group in itertools.groupby(
        comparison.budgets, key=lambda at: (at.recommended, at.tied)
    ):
        values = ", ".join(f"{at.budget:g}" for at in group)
        text = "no method" if label is None else _text(by_label, label, tied, "computation", "%")
        yield f"budget {values} %: {text}"


def _is_worse(gate: Point, key: str) -> bool:
    """Return True if a gate is significantly less accurate than a baseline over images."""
    return key in gate.gains and key not in gate.tied and gate.gains[key].mean < 0


def _by_baseline(gates: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{_BASELINES[key]} ({_listed(labels)})" for key, labels in gates.items())


def _text(
    by_label: Mapping[str, Point], label: str, tied: Sequence[str], cost: CostName, unit: str
) -> str:
    """Return a point with its accuracy and, among tied points, the one that costs least."""
    text = f"{label} ({by_label[label].accuracy.mean:.2f} %"
    if not tied:
        return f"{text})"
    costs = {name: by_label[name].cost(cost).mean for name in (label, *tied)}
    least = min(costs, key=lambda name: costs[name])
    if least == label:
        return f"{text}, the cheapest of {len(costs)} tied)"
    own, lowest = (f"{costs[name]:.3g} {unit}" for name in (label, least))
    return f"{text} at {own}; of {len(costs)} tied, {least} costs least, {lowest})"


def _listed(labels: Sequence[str]) -> str:
    """Return the first labels and the number of the others."""
    more = len(labels) - _MAX_NAMED
    return "; ".join([*labels[:_MAX_NAMED], *([f"{more} more"] if more > 0 else [])]) or "none"
