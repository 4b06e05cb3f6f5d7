"""Report of a comparison of runs: tables, text and HTML."""

from collections.abc import Mapping, Sequence

from dfs_rl.evaluation.budgets import exceeds_budget, ranked_families
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, Pair, Point, Spread
from dfs_rl.evaluation.curves import REPORTED_COMPUTATIONS
from dfs_rl.evaluation.metrics import Interval
from dfs_rl.evaluation.verdict import COST_TOLERANCE
from dfs_rl.reporting.render import Picture, render
from dfs_rl.reporting.tables import MEASURED, Groups, aligned_table, cost_note, filled, timing_notes

_GAINS = {
    "static_table": "minus static",
    "cascade": "minus cascade",
    "tuned_rule": "minus rule",
    "exits": "minus exits",
    "patterns": "minus own shuffled",
}
_NOTES = {
    "budgets": (
        "Each method has the point trained for the budget, or else the best point on val that "
        f"costs at most {100 * COST_TOLERANCE:g} % more. A gate marked ! costs over "
        f"{100 * COST_TOLERANCE:g} % more than its budget."
    ),
    "points": (
        "± is the standard deviation over seeds. A gain marked * exceeds two standard deviations "
        "over seeds and is significant over images, and no uniform setting of up to "
        f"{100 * COST_TOLERANCE:g} % more cost is as good; one marked = is not significant over "
        "images."
    ),
}
_ONE_SEED_NOTE = (
    "Each gate has one seed, so nothing is known of its spread over seeds. A gain marked = is not "
    "significant over images."
)
_Table = tuple[Sequence[str], Groups]


def comparison_text(comparison: ComparisonOfRuns) -> str:
    """Return the tables, with significant differences only, and the verdict."""
    parts, notes = [f"{comparison.dataset}, {_about(comparison)}"], _notes(comparison)
    for name, (head, groups) in comparison_tables(comparison, significant=True).items():
        if groups:
            note = f"\n{filled(notes[name])}" if name in notes else ""
            parts.append(aligned_table(head, groups) + note)
    if comparison.timing is not None:
        costs = [f"{cost_note(comparison)}.", *timing_notes(comparison)]
        parts.append("\n".join(map(filled, costs)))
    # A terminal shows the end of the output.
    parts.append("\n".join(map(filled, comparison.verdict)))
    if comparison.failed:
        parts.append("\n".join(f"Failed: {run}: {why}" for run, why in comparison.failed.items()))
    return "\n\n".join(parts) + "\n"


def html_report(
    comparison: ComparisonOfRuns,
    figures: Mapping[str, Picture],
    sections: Sequence[Mapping[str, object]],
) -> str:
    """Return the report as one HTML file.

    Figures are those of ``comparison_figures``. There is a section per gate, with its ``label``,
    ``figures`` by their titles, ``commands`` that trained and evaluated it, and ``settings`` as
    YAML.
    """
    return render(
        "comparison.html",
        title=f"Comparison of gates: {comparison.dataset}",
        about=f"{_about(comparison)}. {cost_note(comparison)}, gate, stem and head included.",
        summary=comparison.verdict,
        failed=comparison.failed,
        comparison=comparison,
        notes=_notes(comparison),
        several_seeds=_has_several_seeds(comparison),
        timing_notes=timing_notes(comparison),
        tables=comparison_tables(comparison),
        figures=figures,
        sections=sections,
    )


def _notes(comparison: ComparisonOfRuns) -> dict[str, str]:
    return _NOTES if _has_several_seeds(comparison) else {**_NOTES, "points": _ONE_SEED_NOTE}


def _has_several_seeds(comparison: ComparisonOfRuns) -> bool:
    return any(point.accuracy.deviation is not None for point in comparison.points)


def _about(comparison: ComparisonOfRuns) -> str:
    options = ", ".join(map(str, comparison.options))
    return f"{comparison.split} split, {comparison.n:,} images, options {options} bit"


def comparison_tables(
    comparison: ComparisonOfRuns, *, significant: bool = False
) -> dict[str, _Table]:
    """Return head and groups of rows of each table; a table without rows has no group.

    With ``significant``, only differences that are significant over images are listed.
    """
    over_images = "95 % over images"
    pairs = [
        (p.first, p.second, f"{p.difference:+.2f}", _interval(p, sign="+"))
        for p in comparison.pairs
        if not significant or not p.low <= 0 <= p.high
    ]
    curve_pairs = [
        (
            *(pair.first, pair.second, f"{pair.difference:+.2f}"),
            _interval(pair.interval, sign="+"),
            "" if pair.spread is None else _spread(pair.spread, 2, sign="+"),
        )
        for pair in comparison.curve_pairs
        if not significant or not pair.interval.low <= 0 <= pair.interval.high
    ]
    trainings = []
    for cost in comparison.trainings:
        minutes = "" if cost.seconds is None else f"{cost.seconds / 60:.1f}"
        rate = f"{cost.images / cost.seconds:,.0f}" if cost.seconds else ""
        trainings.append((cost.label, str(cost.trainings), f"{cost.images:,}", minutes, rate))
    training = ("gate", "trainings", "images", "minutes", "images per second")
    tables: dict[str, _Table] = {
        "budgets": _budgets(comparison),
        "points": _points(comparison),
        "curves": _curves(comparison),
        "pairs": (("gate", "minus", "points", over_images), [pairs]),
        "curve_pairs": (
            ("curve", "minus", "hypervolume", over_images, "over seeds"),
            [curve_pairs],
        ),
        "trainings": (training, [trainings]),
    }
    return {
        name: (head, [rows for rows in groups if rows]) for name, (head, groups) in tables.items()
    }


def _budgets(comparison: ComparisonOfRuns) -> _Table:
    """Return the recommended method, and accuracy and computation of each method."""
    at_budgets = comparison.budgets
    if not at_budgets:
        return (), []
    points = {point.label: point for point in (*comparison.points, *comparison.references)}
    families = [points[at.recommended].family if at.recommended else "" for at in at_budgets]
    gates: list[tuple[str, ...]] = []
    baselines: list[tuple[str, ...]] = []
    for family in ranked_families(at_budgets, list(points.values())):
        row = [points.get(at.methods.get(family, "")) for at in at_budgets]
        cells = (
            ""
            if p is None
            else f"{_spread(p.accuracy, 2)} at {p.computation.mean:.3g}"
            + " !" * (p.label in at.over_budget)
            for p, at in zip(row, at_budgets, strict=True)
        )
        is_gate = any(p is not None and p.kind == GATE for p in row)
        (gates if is_gate else baselines).append((family, *cells))
    head = (
        f"accuracy % at {comparison.cost_model} %",
        *(f"budget {at.budget:g} %" for at in at_budgets),
    )
    return head, [[("recommended, chosen on val", *families)], gates, baselines]


def _points(comparison: ComparisonOfRuns) -> _Table:
    """Return gates, baselines and references.

    Each gate has its own baselines at its cost. With budgets, only those at these budgets are
    shown.
    """
    shown = {label for at in comparison.budgets for label in at.methods.values()}
    gates = [point for point in comparison.points if point.kind == GATE]
    baselines = [p for p in comparison.points if p.kind != GATE and (p.label in shown or not shown)]
    gains = [key for key in _GAINS if any(key in gate.gains for gate in gates)]
    measured = () if comparison.timing is None else (MEASURED,)
    head = ("method", "seeds", "accuracy %", f"{comparison.cost_model} %", *measured, "patterns")
    groups = [
        [
            (
                point.label,
                str(len(point.seeds)),
                _spread(point.accuracy, 2),
                _spread(point.computation, 3) + " !" * exceeds_budget(point),
                *([] if point.milliseconds is None else [_spread(point.milliseconds, 4)]),
                "" if point.patterns is None else f"{point.patterns.mean:,.0f}",
                *(_gain(point, key) for key in gains),
            )
            for point in group
        ]
        for group in (gates, baselines, comparison.references)
    ]
    return (*head, *(_GAINS[key] for key in gains)), groups


def _gain(point: Point, key: str) -> str:
    if key not in point.gains:
        return ""
    mark = "*" if key in point.better_than else "=" if key in point.tied else " "
    return f"{_spread(point.gains[key], 2, sign='+')} {mark}"


def _curves(comparison: ComparisonOfRuns) -> _Table:
    curves = comparison.curves
    shown = [f"{c:g}" for c in REPORTED_COMPUTATIONS]
    shown = [c for c in shown if any(c in curve.accuracy_at for curve in curves)]
    rows = []
    for curve in curves:
        cells = []
        for cost in shown:
            parts = [_spread(curve.accuracy_at[cost], 2)] if cost in curve.accuracy_at else []
            if cost in curve.accuracy_interval:
                parts.append(_interval(curve.accuracy_interval[cost]))
            cells.append(" ".join(parts))
        missing = f" ({curve.n_incomplete_seeds} incomplete)" if curve.n_incomplete_seeds else ""
        area = f"{_spread(curve.hypervolume, 2)} {_interval(curve.interval)}"
        rows.append((curve.label, str(curve.points), f"{curve.seeds}{missing}", area, *cells))
    head = ("curve", "points", "seeds", "hypervolume, % x decades", *(f"at {c} %" for c in shown))
    return head, [rows]


def _spread(value: Spread, digits: int, *, sign: str = "") -> str:
    deviation = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:{sign}.{digits}f}{deviation}"


def _interval(value: Interval | Pair, *, sign: str = "") -> str:
    return f"[{value.low:{sign}.2f}, {value.high:{sign}.2f}]"
