"""What a comparison says in words: what to ship at which cost, and which differences hold."""

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
    for key, name in (("static_table", "best static table"), ("cascade", "confidence cascade")):
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
    for differs in curve_differences:
        low, high = differs.interval.low, differs.interval.high
        if low <= 0 <= high:
            continue
        better, worse = (
            (differs.first, differs.second) if low > 0 else (differs.second, differs.first)
        )
        over_seeds = differs.spread is not None and exceeds_seeds(
            differs.spread
            if low > 0
            else Spread(mean=-differs.spread.mean, deviation=differs.spread.deviation)
        )
        also = (
            "and by more than two standard deviations over seeds"
            if over_seeds
            else "but not beyond seeds"
        )
        yield (
            f"Over all budgets the area of {better} is {abs(differs.difference):.2f} above that of {worse}, beyond chance over "
            f"images, {also}."
        )


def _misses(gate: Point) -> bool:
    """Whether a gate spends more than it was asked to, but for chance."""
    return gate.budget is not None and gate.computation.mean > (1 + SAME_COST) * gate.budget


def exceeds_seeds(gain: Spread) -> bool:
    """Whether a gain is more than twice its standard deviation over seeds; a single seed cannot show it."""
    return gain.deviation is not None and gain.mean > 2 * gain.deviation
