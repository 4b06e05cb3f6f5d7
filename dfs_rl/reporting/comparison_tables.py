"""Text and CSV output of a comparison of runs."""

import csv
import io
import textwrap
from collections.abc import Sequence

from dfs_rl.evaluation.budgets import ranked_families
from dfs_rl.evaluation.comparison_records import (
    GATE,
    BudgetResult,
    ComparisonOfRuns,
    Curve,
    Point,
    Spread,
)
from dfs_rl.evaluation.curves import REPORTED_COMPUTATIONS
from dfs_rl.evaluation.metrics import Interval
from dfs_rl.evaluation.verdict import COST_TOLERANCE
from dfs_rl.reporting.tables import WIDTH, aligned_table

_OVER_BUDGET_MARK = " !"
"""Mark of a gate above its budget."""
ABOUT_BUDGETS = (
    "Of each method what was asked to keep to the budget, or else the best that costs at most "
    f"{100 * COST_TOLERANCE:g} % more, chosen on "
    f"val. An exclamation mark: it spends over {100 * COST_TOLERANCE:g} % more than it was asked "
    "to."
)
"""Explanation of the table of budgets."""
_HEAD = ("method", "seeds", "accuracy %", "computation %", "patterns")
_GAINS = {
    "static_table": "minus static",
    "cascade": "minus cascade",
    "exits": "minus exits",
    "patterns": "minus own shuffled",
}


def comparison_text(comparison: ComparisonOfRuns) -> str:
    """Return the tables, the sentences on differences, and the verdict.

    The verdict comes last, because a terminal shows the end of the output.
    """
    head = (
        f"{comparison.dataset}, {comparison.split} split, {comparison.n:,} images, options "
        f"{', '.join(map(str, comparison.options))} bit; ± is the standard deviation over seeds"
    )
    parts = [head]
    if comparison.budgets:
        parts.append(
            aligned_table(*budget_table(comparison))
            + "\n"
            + textwrap.fill(ABOUT_BUDGETS, WIDTH, subsequent_indent="  ")
        )
    parts.append(aligned_table(*points_table(comparison)))
    if comparison.curves:
        parts.append(aligned_table(*curve_table(comparison)))
    parts.append(aligned_table(TRAINING_HEAD, [training_rows(comparison)]))
    for sentences in (comparison.differences, comparison.verdict):
        if sentences:
            filled = (textwrap.fill(said, WIDTH, subsequent_indent="  ") for said in sentences)
            parts.append("\n".join(filled))
    if comparison.failed:
        told = (f"Failed: {path}: {reason}" for path, reason in comparison.failed.items())
        parts.append("\n".join(told))
    return "\n\n".join(parts) + "\n"


def budget_table(
    comparison: ComparisonOfRuns,
) -> tuple[tuple[str, ...], list[list[tuple[str, ...]]]]:
    """Return head and rows of the table of budgets.

    It has the recommended method, and accuracy and computation of each method.
    """
    points = {point.label: point for point in (*comparison.points, *comparison.references)}
    head = (
        "accuracy % at computation %",
        *(f"about {at.budget:g} %" for at in comparison.budgets),
    )
    recommended_families = tuple(
        "" if at.recommended is None else points[at.recommended].family for at in comparison.budgets
    )
    groups: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}  # gates and baselines
    for family in ranked_families(comparison.budgets, list(points.values())):
        at_budgets_points = [points.get(at.methods.get(family, "")) for at in comparison.budgets]
        row = (
            family,
            *(
                _budget_cell(p, at)
                for p, at in zip(at_budgets_points, comparison.budgets, strict=True)
            ),
        )
        groups[any(p is not None and p.kind == GATE for p in at_budgets_points)].append(row)
    recommended = ("to ship, chosen on val", *recommended_families)
    return head, [group for group in ([recommended], *groups.values()) if group]


def _budget_cell(point: Point | None, at: BudgetResult) -> str:
    if point is None:
        return ""
    mark = _OVER_BUDGET_MARK if point.label in at.over_budget else ""
    return f"{_spread(point.accuracy, 2)} at {point.computation.mean:.3g}{mark}"


def points_table(
    comparison: ComparisonOfRuns,
) -> tuple[tuple[str, ...], list[list[tuple[str, ...]]]]:
    """Return head and rows of the table of points: gates, baselines, references.

    Every gate has its own baselines at its cost. If there are budgets, only the baselines at these
    budgets are shown.
    """
    told = {label for at in comparison.budgets for label in at.methods.values()}
    gates = [point for point in comparison.points if point.kind == GATE]
    baselines = [
        point
        for point in comparison.points
        if point.kind != GATE and (point.label in told or not told)
    ]
    groups = (gates, baselines, list(comparison.references))
    gains = _gains(comparison)
    head = (*_HEAD, *(_GAINS[key] for key in gains))
    return head, [[_cells(point, gains) for point in group] for group in groups if group]


def _gains(comparison: ComparisonOfRuns) -> list[str]:
    """Return the baselines that have a column; exits have one only if the network has exits."""
    return [
        key
        for key in _GAINS
        if key != "exits" or any(key in point.gains for point in comparison.points)
    ]


def curve_table(
    comparison: ComparisonOfRuns,
) -> tuple[tuple[str, ...], list[list[tuple[str, ...]]]]:
    """Return head and rows of the table of curves: areas, and accuracies at fixed computations."""
    shown = [
        f"{c:g}"
        for c in REPORTED_COMPUTATIONS
        if any(f"{c:g}" in v.accuracy_at for v in comparison.curves)
    ]
    head = ("curve", "points", "seeds", "area, points x decades", *(f"at {c} %" for c in shown))
    rows = [
        (
            curve.label,
            str(curve.points),
            str(curve.seeds),
            f"{_spread(curve.hypervolume, 2)} {_interval(curve.interval)}",
            *(_accuracy_cell(curve, c) for c in shown),
        )
        for curve in comparison.curves
    ]
    return head, [rows]


TRAINING_HEAD = ("gate", "trainings", "images", "minutes", "images per second")


def training_rows(comparison: ComparisonOfRuns) -> list[tuple[str, ...]]:
    """Return the training cost of each kind of gate."""
    rows: list[tuple[str, ...]] = []
    for cost in comparison.trainings:
        known = cost.seconds is not None and cost.seconds > 0
        minutes = f"{cost.seconds / 60:.1f}" if cost.seconds is not None else ""
        rate = f"{cost.images / cost.seconds:,.0f}" if known and cost.seconds else ""
        rows.append((cost.label, str(cost.trainings), f"{cost.images:,}", minutes, rate))
    return rows


def comparison_csv(comparison: ComparisonOfRuns) -> str:
    """Return one CSV line per point, with means and deviations in separate columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    gains = _gains(comparison)
    fields = ("accuracy", "computation", *gains)
    writer.writerow(
        ["label", "kind", "seeds", *(f"{f}_{part}" for f in fields for part in ("mean", "sd"))]
    )
    for point in (*comparison.points, *comparison.references):
        spreads = [point.accuracy, point.computation, *(point.gains.get(key) for key in gains)]
        values = [
            value
            for s in spreads
            for value in ((None, None) if s is None else (s.mean, s.deviation))
        ]
        writer.writerow([point.label, point.kind, len(point.seeds), *values])
    return buffer.getvalue()


def _cells(point: Point, gains: Sequence[str]) -> tuple[str, ...]:
    patterns = "" if point.patterns is None else f"{point.patterns.mean:,.0f}"
    return (
        point.label,
        str(len(point.seeds)),
        _spread(point.accuracy, 2),
        _spread(point.computation, 3),
        patterns,
        *(_signed(point.gains.get(key)) for key in gains),
    )


def _spread(value: Spread, digits: int) -> str:
    deviation = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def _interval(value: Interval) -> str:
    return f"[{value.low:.2f}, {value.high:.2f}]"


def _accuracy_cell(curve: Curve, computation: str) -> str:
    value = curve.accuracy_at.get(computation)
    if value is None:
        return ""
    over_images = curve.accuracy_interval.get(computation)
    return " ".join([_spread(value, 2), *([_interval(over_images)] if over_images else [])])


def _signed(value: Spread | None) -> str:
    if value is None:
        return ""
    deviation = "" if value.deviation is None else f" ± {value.deviation:.2f}"
    return f"{value.mean:+.2f}{deviation}"
