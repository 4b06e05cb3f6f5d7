"""What a comparison says in words: what to ship at which cost, and which differences hold."""

import math
from collections.abc import Iterator, Sequence

from dfs_rl.evaluation.comparison_records import Curve, CurvePair, Pair, Point, Spread
from dfs_rl.evaluation.verdict import SAME_COST


def verdict_of(
    gates: Sequence[Point],
    frontier: Sequence[Point],
    pairs: Sequence[Pair],
    curves: Sequence[Curve],
    curve_differences: Sequence[CurvePair],
) -> Iterator[str]:
    """Say what to ship at which cost, and what the gates are worth."""
    over = [p for p in gates if _misses(p)]
    if over:
        missed = "; ".join(f"{p.label} ({p.computation.mean:.3g} %)" for p in over)
        yield f"More than 5 % above the budget that was asked for: {missed}."
    listed = "; ".join(
        f"from {p.computation.mean:.3g} % computation on, {p.label} ({p.accuracy.mean:.2f} %)"
        for p in frontier
    )
    yield f"To ship, chosen on val: {listed}."
    # Rounded up, so that the budget leaves room for the cascade that was found.
    cascades = [
        f"{math.ceil(1e4 * p.selection_computation) / 1e4:.10g}"
        for p in frontier
        if p.kind == "cascade"
    ]
    if cascades:
        yield (
            "A cascade becomes a run that loads like any gate with train_cascade on its backbone, here with --budget "
            f"{' or '.join(cascades)}."
        )
    for key, name in (
        ("static_table", "best static table"),
        ("cascade", "confidence cascade"),
        ("exits", "confidence exits"),
    ):
        if not any(key in gate.gains for gate in gates):
            if key == "cascade" and gates:
                yield "There is no confidence cascade at any gate's cost: one pass through the whole network costs more."
            continue
        above = "; ".join(gate.label for gate in gates if key in gate.above)
        yield (
            f"Above the {name} at no more than its cost, by more than two standard deviations over seeds and beyond chance over "
            f"images: {above or 'no gate'}."
        )
    for pair in pairs:
        if pair.low > 0 or pair.high < 0:
            better, worse = (pair.first, pair.second) if pair.low > 0 else (pair.second, pair.first)
            yield f"At about the same cost {better} is {abs(pair.difference):.2f} points above {worse}, beyond chance over images."
    for curve in curves:
        if curve.lacking and curve.histograms:
            yield (
                f"{curve.lacking} of {curve.lacking + curve.seeds} seeds of {curve.label} lack a budget that others have, and have no part "
                "in its curve."
            )
    yield from _areas(curves, curve_differences)


def _areas(curves: Sequence[Curve], differences: Sequence[CurvePair]) -> Iterator[str]:
    """Rank the gates by area, and say which differences hold over images, and over seeds as well."""
    gates = sorted((c for c in curves if c.histograms), key=lambda c: -c.hypervolume.mean)
    if not gates:
        return
    ranked = ", ".join(f"{c.label} {c.hypervolume.mean:.2f}" for c in gates)
    yield f"By area over all budgets: {ranked}."
    sure: list[str] = []
    unsure: list[str] = []
    for pair in differences:
        low, high = pair.interval.low, pair.interval.high
        if low <= 0 <= high:
            continue
        names = (pair.first, pair.second) if low > 0 else (pair.second, pair.first)
        told = f"{names[0]} above {names[1]} (+{abs(pair.difference):.2f})"
        (sure if _holds_over_seeds(pair) else unsure).append(told)
    if sure:
        yield f"Areas that differ beyond chance over images and by two standard deviations over seeds: {'; '.join(sure)}."
    if unsure:
        yield f"Areas that differ beyond chance over images, but not over seeds: {'; '.join(unsure)}."


def _holds_over_seeds(pair: CurvePair) -> bool:
    """Whether a difference of areas is more than twice its standard deviation over seeds."""
    if pair.spread is None:
        return False
    return exceeds_seeds(Spread(mean=abs(pair.spread.mean), deviation=pair.spread.deviation))


def _misses(gate: Point) -> bool:
    """Whether a gate spends more than it was asked to, but for chance."""
    return gate.budget is not None and gate.computation.mean > (1 + SAME_COST) * gate.budget


def exceeds_seeds(gain: Spread) -> bool:
    """Whether a gain is more than twice its standard deviation over seeds; a single seed cannot show it."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
