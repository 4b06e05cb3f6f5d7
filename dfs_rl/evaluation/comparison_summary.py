"""Verdict of a comparison of runs in at most five sentences."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from dfs_rl.evaluation.comparison_records import (
    GATE,
    BudgetResult,
    Curve,
    CurvePair,
    Point,
    Spread,
)

_MAX_NAMED = 3
"""Largest number of labels in a list."""
_BASELINES = {
    "static_table": "static bit table",
    "cascade": "confidence cascade",
    "exits": "confidence exits",
}


def comparison_verdict(
    *,
    points: Sequence[Point],
    pareto_front: Sequence[Sequence[Point]],
    budgets: Sequence[BudgetResult],
    curves: Sequence[Curve],
    curve_pairs: Sequence[CurvePair],
) -> Iterator[str]:
    """Yield the recommended points and the gates that are better than their baselines.

    Args:
        points: Gates, baselines and uniform settings.
        pareto_front: Recommended points as the allowed computation grows, each followed by the
            points tied with it on val.
        budgets: Results at each budget; if empty, the Pareto front is described instead.
        curves: Curves of the gates over all budgets, each with its baselines.
        curve_pairs: Differences in hypervolume between the curves.
    """
    by_label = {point.label: point for point in points}
    if budgets:
        labels = [at.recommended for at in budgets if at.recommended is not None]
        listed = "; ".join(_at_budgets(budgets, by_label))
    else:
        labels = [point.label for point, *_ in pareto_front]
        listed = "; ".join(
            f"from {point.computation.mean:.3g} % computation: {_text(point, len(tied))}"
            for point, *tied in pareto_front
        )
    yield f"Recommended on val, the simplest of tied methods: {listed}."
    # Rounded up, so that the budget admits the recommended cascade.
    cascades = dict.fromkeys(
        f"{math.ceil(1e4 * by_label[label].selection_computation) / 1e4:.10g}"
        for label in labels
        if by_label[label].kind == "cascade"
    )
    if cascades:
        yield f"To use a recommended cascade, run train_cascade --budget {' or '.join(cascades)}."
    gates = [point for point in points if point.kind == GATE]
    keys = [key for key in _BASELINES if any(key in gate.gains for gate in gates)]
    if keys:
        better = ", ".join(
            f"{_BASELINES[key]} ({_listed([g.label for g in gates if key in g.better_than])})"
            for key in keys
        )
        yield f"Gates significantly better than their {better}."
    if gates and "cascade" not in keys:
        yield "No confidence cascade is as cheap as a gate: a pass through the network costs more."
    ranked = sorted((c for c in curves if c.baseline is None), key=lambda c: -c.hypervolume.mean)
    if ranked:
        first = ranked[0].label
        tied = [
            ({pair.first, pair.second} - {first}).pop()
            for pair in curve_pairs
            if first in (pair.first, pair.second) and pair.interval.low <= 0 <= pair.interval.high
        ]
        suffix = f"; tied with {_listed(tied)}" if tied else ""
        yield f"Largest hypervolume: {first} with {ranked[0].hypervolume.mean:.2f}{suffix}."


def _at_budgets(budgets: Sequence[BudgetResult], by_label: Mapping[str, Point]) -> Iterator[str]:
    """Yield the recommended point at each budget, once for consecutive equal ones."""
    for (label, tied), group in itertools.groupby(
        budgets, key=lambda at: (at.recommended, at.tied)
    ):
        values = ", ".join(f"{at.budget:g}" for at in group)
        point = "no method" if label is None else _text(by_label[label], len(tied))
        yield f"budget {values} %: {point}"


def _text(point: Point, n_tied: int) -> str:
    tied = f", tied with {n_tied} more" if n_tied else ""
    return f"{point.label} ({point.accuracy.mean:.2f} %{tied})"


def _listed(labels: Sequence[str]) -> str:
    """Return the first labels and the number of the others."""
    more = len(labels) - _MAX_NAMED
    return "; ".join([*labels[:_MAX_NAMED], *([f"{more} more"] if more > 0 else [])]) or "none"


def is_significant_over_seeds(gain: Spread) -> bool:
    """Return True if a gain exceeds two standard deviations over seeds; False for a single seed."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
