"""Sentences that summarize a comparison: recommended points and significant differences."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from dfs_rl.evaluation.budgets import exceeds_budget
from dfs_rl.evaluation.comparison_records import (
    GATE,
    BudgetResult,
    Curve,
    CurvePair,
    Pair,
    Point,
    Spread,
)
from dfs_rl.evaluation.verdict import COST_TOLERANCE

_MAX_NAMED = 3
"""Largest number of tied points named in a sentence."""


def comparison_verdict(
    *,
    points: Sequence[Point],
    pareto_front: Sequence[Sequence[Point]],
    budgets: Sequence[BudgetResult],
    images: int,
    curves: Sequence[Curve],
    curve_pairs: Sequence[CurvePair],
) -> Iterator[str]:
    """Yield the recommended points and the advantages of the gates, in sentences.

    Args:
        points: Gates, baselines and uniform settings.
        pareto_front: Recommended points as the allowed computation grows, each followed by the
            points tied with it on val.
        budgets: Results at each budget; if empty, the Pareto front is described instead.
        images: Number of images of val.
        curves: Curves of the gates over all budgets, each with its baselines.
        curve_pairs: Differences in hypervolume between the curves.
    """
    yield from _recommendations(
        {point.label: point for point in points}, pareto_front, budgets, images
    )
    gates = [point for point in points if point.kind == GATE]
    over_budget = [p for p in gates if exceeds_budget(p)]
    if over_budget:
        missed = "; ".join(f"{p.label} ({p.computation.mean:.3g} %)" for p in over_budget)
        yield f"More than {100 * COST_TOLERANCE:g} % above the budget that was asked for: {missed}."
    for key, name in (
        ("static_table", "best static table"),
        ("cascade", "confidence cascade"),
        ("exits", "confidence exits"),
    ):
        if any(key in gate.gains for gate in gates):
            yield from _baseline_sentences(key, name, gates)
        elif key == "cascade" and gates:
            yield (
                "There is no confidence cascade at any gate's cost: one pass through the whole "
                "network costs more."
            )
    for curve in curves:
        if curve.n_incomplete_seeds and curve.baseline is None:
            yield (
                f"{curve.n_incomplete_seeds} of {curve.n_incomplete_seeds + curve.seeds} seeds of "
                f"{curve.label} lack a budget that others have, and have no part "
                "in its curve."
            )
    yield from _ranking(curves, curve_pairs)


def _recommendations(
    by_label: Mapping[str, Point],
    pareto_front: Sequence[Sequence[Point]],
    budgets: Sequence[BudgetResult],
    images: int,
) -> Iterator[str]:
    """Yield the recommended points and how to train recommended cascades."""
    if budgets:
        recommended_points = [
            by_label[at.recommended] for at in budgets if at.recommended is not None
        ]
        listed = _budget_recommendations(budgets, by_label)
        unsure = any(at.tied for at in budgets)
    else:
        recommended_points = [point for point, *_ in pareto_front]
        listed = "; ".join(
            f"from {p.computation.mean:.3g} % computation on, "
            f"{_recommendation_text(p, [other.label for other in tied])}"
            for p, *tied in pareto_front
        )
        unsure = any(len(step) > 1 for step in pareto_front)
    yield f"To ship, chosen on val: {listed}."
    if unsure:
        yield (
            f"Where the {images:,} images of val cannot tell what to ship from something else, the "
            "simplest is taken: uniform bits before "
            "other tables, those before a cascade or exits, and those before a gate."
        )
    # Rounded up, so that the budget admits the recommended cascade.
    cascades = dict.fromkeys(
        f"{math.ceil(1e4 * p.selection_computation) / 1e4:.10g}"
        for p in recommended_points
        if p.kind == "cascade"
    )
    if cascades:
        yield (
            "A cascade becomes a run that loads like any gate with train_cascade on its backbone, "
            "here with --budget "
            f"{' or '.join(cascades)}."
        )


def _baseline_sentences(key: str, name: str, gates: Sequence[Point]) -> Iterator[str]:
    """Yield the gates significantly better than a baseline, and the gates tied with it."""
    better_than = "; ".join(gate.label for gate in gates if key in gate.better_than)
    yield (
        f"Above the {name} and uniform bits at no more than its cost, by more than two standard "
        "deviations over seeds and beyond "
        f"chance over images: {better_than or 'no gate'}."
    )
    tied = "; ".join(gate.label for gate in gates if key in gate.tied)
    if tied:
        yield f"Not told from the {name} by the images: {tied}."


def difference_sentences(
    *, points: Sequence[Point], pairs: Sequence[Pair], curve_pairs: Sequence[CurvePair]
) -> Iterator[str]:
    """Yield the significant differences between gates, at about the same cost and over all budgets.

    Args:
        points: Gates and their baselines.
        pairs: Pairs of gates of about the same cost.
        curve_pairs: Differences in hypervolume between gates and their baselines.
    """
    yield from _pair_sentences(pairs, {point.label: point for point in points})
    yield from _hypervolume_sentences(curve_pairs)


def _budget_recommendations(budgets: Sequence[BudgetResult], by_label: Mapping[str, Point]) -> str:
    """Describe the recommended point at each budget, merging consecutive equal entries."""
    grouped = []
    for (label, tied), run in itertools.groupby(budgets, key=lambda at: (at.recommended, at.tied)):
        *others, last = (f"{at.budget:g}" for at in run)
        about = f"for about {', '.join(others)}{' and ' if others else ''}{last} %"
        if label is None:
            grouped.append(f"{about}, nothing is as cheap")
        else:
            grouped.append(f"{about}, {_recommendation_text(by_label[label], tied)}")
    return "; ".join(grouped)


def _recommendation_text(point: Point, tied: Sequence[str]) -> str:
    """Describe a recommended point: label, accuracy and the first of the points tied on val."""
    named = ", ".join(tied[:_MAX_NAMED])
    more = f" and {len(tied) - _MAX_NAMED} more" if len(tied) > _MAX_NAMED else ""
    unsure = f"; val cannot tell it from {named}{more}" if tied else ""
    return f"{point.label} ({point.accuracy.mean:.2f} %{unsure})"


def _pair_sentences(pairs: Sequence[Pair], by_label: Mapping[str, Point]) -> Iterator[str]:
    """Yield the significant differences over images between gates of about the same cost.

    Pairs with the same budget are grouped by it. The gates that beat most others come first, each
    with the gates that it beats.
    """
    grouped: dict[float | None, dict[str, list[str]]] = {}
    for pair in pairs:
        if pair.low <= 0 <= pair.high:
            continue
        names = (pair.first, pair.second) if pair.low > 0 else (pair.second, pair.first)
        better, worse = (by_label[name] for name in names)
        shared = better.budget if better.budget == worse.budget else None
        if shared is not None:
            names = (better.family, worse.family)
        found = grouped.setdefault(shared, {}).setdefault(names[0], [])
        found.append(f"{names[1]} (+{abs(pair.difference):.2f})")
    for budget, better_than in sorted(grouped.items(), key=lambda item: item[0] or 0.0):
        where = "At about the same cost" if budget is None else f"At a budget of {budget:g} %"
        yield f"{where}, beyond chance over images: {_listed(better_than)}."


def _ranking(curves: Sequence[Curve], curve_pairs: Sequence[CurvePair]) -> Iterator[str]:
    """Yield the ranking of the gates by hypervolume and the curves tied with the first gate."""
    gates = sorted((c for c in curves if c.baseline is None), key=lambda c: -c.hypervolume.mean)
    if not gates:
        return
    ranked = []
    for gate in gates:
        baselines = ", ".join(
            f"{curve.baseline} {curve.hypervolume.mean:.2f}"
            for curve in curves
            if curve.baseline is not None and curve.gate == gate.label
        )
        suffix = f" ({baselines})" if baselines else ""
        ranked.append(f"{gate.label} {gate.hypervolume.mean:.2f}{suffix}")
    yield (
        "By area over all budgets, in brackets what could be shipped instead at its costs: "
        f"{'; '.join(ranked)}."
    )
    first = gates[0].label
    tied = [
        ({pair.first, pair.second} - {first}).pop()
        for pair in curve_pairs
        if first in (pair.first, pair.second) and pair.interval.low <= 0 <= pair.interval.high
    ]
    if tied:
        yield f"By area the images cannot tell {first} from: {'; '.join(tied)}."


def _hypervolume_sentences(differences: Sequence[CurvePair]) -> Iterator[str]:
    """Yield the differences in hypervolume that are significant over images, and over seeds too."""
    sure: dict[str, list[str]] = {}
    unsure: dict[str, list[str]] = {}
    for pair in differences:
        low, high = pair.interval.low, pair.interval.high
        if low <= 0 <= high:
            continue
        better, worse = (pair.first, pair.second) if low > 0 else (pair.second, pair.first)
        kept = sure if _is_significant(pair) else unsure
        kept.setdefault(better, []).append(f"{worse} (+{abs(pair.difference):.2f})")
    for kept, how in (
        (sure, "and by two standard deviations over seeds"),
        (unsure, "but not over seeds"),
    ):
        if kept:
            yield f"Areas that differ beyond chance over images {how}: {_listed(kept)}."


def _listed(better_than: Mapping[str, Sequence[str]]) -> str:
    """List each entry with the entries that it beats, sorted by their number."""
    ranked = sorted(better_than.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{better} above {', '.join(worse)}" for better, worse in ranked)


def _is_significant(pair: CurvePair) -> bool:
    """Return True if a difference exceeds two standard deviations over seeds."""
    if pair.spread is None:
        return False
    return is_significant_over_seeds(
        Spread(mean=abs(pair.spread.mean), deviation=pair.spread.deviation)
    )


def is_significant_over_seeds(gain: Spread) -> bool:
    """Return True if a gain exceeds two standard deviations over seeds; False for a single seed."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
