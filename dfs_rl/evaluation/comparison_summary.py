"""What a comparison says in words: what to ship at which cost, and which differences hold."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from dfs_rl.evaluation.budgets import misses
from dfs_rl.evaluation.comparison_records import (
    GATE,
    AtBudget,
    Curve,
    CurvePair,
    Pair,
    Point,
    Spread,
)
from dfs_rl.evaluation.verdict import SAME_COST

_NAMED = 3
"""Of what cannot be told from what to ship, how many are named in a sentence."""


def verdict_of(
    *,
    points: Sequence[Point],
    frontier: Sequence[Sequence[Point]],
    budgets: Sequence[AtBudget],
    images: int,
    curves: Sequence[Curve],
    curve_pairs: Sequence[CurvePair],
) -> Iterator[str]:
    """Say what to ship at which cost, and what the gates are worth.

    Args:
        points: Gates, rivals and uniform settings.
        frontier: Those that are taken as more computation is allowed, each followed by those that val cannot tell from it.
        budgets: What there is at each budget; none where gates have no budgets, and the frontier is told instead.
        images: How many images val has.
        curves: Gates over all their budgets, each with its rivals.
        curve_pairs: Their areas against each other.
    """
    yield from _to_ship({point.label: point for point in points}, frontier, budgets, images)
    gates = [point for point in points if point.kind == GATE]
    over = [p for p in gates if misses(p)]
    if over:
        missed = "; ".join(f"{p.label} ({p.computation.mean:.3g} %)" for p in over)
        yield f"More than {100 * SAME_COST:g} % above the budget that was asked for: {missed}."
    for key, name in (
        ("static_table", "best static table"),
        ("cascade", "confidence cascade"),
        ("exits", "confidence exits"),
    ):
        if any(key in gate.gains for gate in gates):
            yield from _against(key, name, gates)
        elif key == "cascade" and gates:
            yield "There is no confidence cascade at any gate's cost: one pass through the whole network costs more."
    for curve in curves:
        if curve.lacking and curve.rival is None:
            yield (
                f"{curve.lacking} of {curve.lacking + curve.seeds} seeds of {curve.label} lack a budget that others have, and have no part "
                "in its curve."
            )
    yield from _ranking(curves, curve_pairs)


def _to_ship(
    by_label: Mapping[str, Point],
    frontier: Sequence[Sequence[Point]],
    budgets: Sequence[AtBudget],
    images: int,
) -> Iterator[str]:
    """Name what to ship, and what val cannot tell from it."""
    if budgets:
        shipped = [by_label[at.ship] for at in budgets if at.ship is not None]
        listed = _at_each(budgets, by_label)
        unsure = any(at.level for at in budgets)
    else:
        shipped = [point for point, *_ in frontier]
        listed = "; ".join(
            f"from {p.computation.mean:.3g} % computation on, {_taken(p, [other.label for other in level])}"
            for p, *level in frontier
        )
        unsure = any(len(step) > 1 for step in frontier)
    yield f"To ship, chosen on val: {listed}."
    if unsure:
        yield (
            f"Where the {images:,} images of val cannot tell what to ship from something else, the simplest is taken: uniform bits before "
            "other tables, those before a cascade or exits, and those before a gate."
        )
    # Rounded up, so that the budget leaves room for the cascade that was found.
    cascades = dict.fromkeys(
        f"{math.ceil(1e4 * p.selection_computation) / 1e4:.10g}"
        for p in shipped
        if p.kind == "cascade"
    )
    if cascades:
        yield (
            "A cascade becomes a run that loads like any gate with train_cascade on its backbone, here with --budget "
            f"{' or '.join(cascades)}."
        )


def _against(key: str, name: str, gates: Sequence[Point]) -> Iterator[str]:
    """Name the gates that are above a rival, and those that the images cannot tell from it."""
    above = "; ".join(gate.label for gate in gates if key in gate.above)
    yield (
        f"Above the {name} and uniform bits at no more than its cost, by more than two standard deviations over seeds and beyond "
        f"chance over images: {above or 'no gate'}."
    )
    level = "; ".join(gate.label for gate in gates if key in gate.level)
    if level:
        yield f"Not told from the {name} by the images: {level}."


def differences_of(
    *, points: Sequence[Point], pairs: Sequence[Pair], curve_pairs: Sequence[CurvePair]
) -> Iterator[str]:
    """Say which gates differ, at about the same cost and over all budgets; of many gates that is long.

    Args:
        points: Gates.
        pairs: Those that cost about the same.
        curve_pairs: Areas of gates and their rivals against each other.
    """
    yield from _paired(pairs, {point.label: point for point in points})
    yield from _areas(curve_pairs)


def _at_each(budgets: Sequence[AtBudget], by_label: Mapping[str, Point]) -> str:
    """Name what to ship at each budget; budgets in a row with the same answer share it."""
    told = []
    for (label, level), run in itertools.groupby(budgets, key=lambda at: (at.ship, at.level)):
        *others, last = (f"{at.budget:g}" for at in run)
        about = f"for about {', '.join(others)}{' and ' if others else ''}{last} %"
        if label is None:
            told.append(f"{about}, nothing is as cheap")
        else:
            told.append(f"{about}, {_taken(by_label[label], level)}")
    return "; ".join(told)


def _taken(point: Point, level: Sequence[str]) -> str:
    """Name what to ship, what it gets right, and the first of those that val cannot tell from it."""
    named = ", ".join(level[:_NAMED])
    more = f" and {len(level) - _NAMED} more" if len(level) > _NAMED else ""
    unsure = f"; val cannot tell it from {named}{more}" if level else ""
    return f"{point.label} ({point.accuracy.mean:.2f} %{unsure})"


def _paired(pairs: Sequence[Pair], by_label: Mapping[str, Point]) -> Iterator[str]:
    """Say which gates at about the same cost differ beyond chance over images, by their budgets if they share them.

    The gates that are above most others come first, each with all that it is above.
    """
    told: dict[float | None, dict[str, list[str]]] = {}
    for pair in pairs:
        if pair.low <= 0 <= pair.high:
            continue
        names = (pair.first, pair.second) if pair.low > 0 else (pair.second, pair.first)
        better, worse = (by_label[name] for name in names)
        shared = better.budget if better.budget == worse.budget else None
        if shared is not None:
            names = (better.family, worse.family)
        found = told.setdefault(shared, {}).setdefault(names[0], [])
        found.append(f"{names[1]} (+{abs(pair.difference):.2f})")
    for budget, above in sorted(told.items(), key=lambda item: item[0] or 0.0):
        where = "At about the same cost" if budget is None else f"At a budget of {budget:g} %"
        yield f"{where}, beyond chance over images: {_listed(above)}."


def _ranking(curves: Sequence[Curve], curve_pairs: Sequence[CurvePair]) -> Iterator[str]:
    """Rank the gates by area, beside their rivals', and name what the images cannot tell from the first."""
    gates = sorted((c for c in curves if c.rival is None), key=lambda c: -c.hypervolume.mean)
    if not gates:
        return
    ranked = []
    for gate in gates:
        rivals = ", ".join(
            f"{curve.rival} {curve.hypervolume.mean:.2f}"
            for curve in curves
            if curve.rival is not None and curve.gate == gate.label
        )
        beside = f" ({rivals})" if rivals else ""
        ranked.append(f"{gate.label} {gate.hypervolume.mean:.2f}{beside}")
    yield f"By area over all budgets, in brackets what could be shipped instead at its costs: {'; '.join(ranked)}."
    first = gates[0].label
    level = [
        ({pair.first, pair.second} - {first}).pop()
        for pair in curve_pairs
        if first in (pair.first, pair.second) and pair.interval.low <= 0 <= pair.interval.high
    ]
    if level:
        yield f"By area the images cannot tell {first} from: {'; '.join(level)}."


def _areas(differences: Sequence[CurvePair]) -> Iterator[str]:
    """Say which areas differ over images, and over seeds as well."""
    sure: dict[str, list[str]] = {}
    unsure: dict[str, list[str]] = {}
    for pair in differences:
        low, high = pair.interval.low, pair.interval.high
        if low <= 0 <= high:
            continue
        better, worse = (pair.first, pair.second) if low > 0 else (pair.second, pair.first)
        kept = sure if _holds_over_seeds(pair) else unsure
        kept.setdefault(better, []).append(f"{worse} (+{abs(pair.difference):.2f})")
    for kept, how in (
        (sure, "and by two standard deviations over seeds"),
        (unsure, "but not over seeds"),
    ):
        if kept:
            yield f"Areas that differ beyond chance over images {how}: {_listed(kept)}."


def _listed(above: Mapping[str, Sequence[str]]) -> str:
    """Name who is above whom, those first that are above most."""
    ranked = sorted(above.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{better} above {', '.join(worse)}" for better, worse in ranked)


def _holds_over_seeds(pair: CurvePair) -> bool:
    """Whether a difference of areas is more than twice its standard deviation over seeds."""
    if pair.spread is None:
        return False
    return exceeds_seeds(Spread(mean=abs(pair.spread.mean), deviation=pair.spread.deviation))


def exceeds_seeds(gain: Spread) -> bool:
    """Whether a gain is more than twice its standard deviation over seeds; a single seed cannot show it."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
