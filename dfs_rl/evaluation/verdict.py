"""What a gate's figures prove and what they do not, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.evaluation.metrics import PairedDifference

ComparisonOutcome = Literal[
    "better", "better_at_higher_cost", "tie", "worse_at_lower_cost", "worse"
]

# Costs within 5 % count as equal: the baselines at the gate's cost cannot hit it exactly.
COST_TOLERANCE = 0.05


def with_cost_tolerance(cost: float) -> float:
    """Return the highest cost that counts as no more than ``cost``, for gates and baselines alike."""
    return (1 + COST_TOLERANCE) * cost


# The baselines that know what the gate does, but not to which image.
_MARGINALS = ("mode_table", "random", "patterns")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gate against one other method on the same images.

    Attributes:
        key: The other method, see ``MethodResult``.
        label: Its name in tables.
        role: Its role, see ``MethodResult``.
        difference: Accuracy of the gate minus its accuracy, in points.
        low: Lower end of the 95 % interval.
        high: Upper end of it.
        relative_computation: The gate's computation over its computation, None where that is 0.
        outcome: ``"better"``: more accurate at no more computation; ``"better_at_higher_cost"``:
            more accurate at more; ``"tie"``: no difference shown; ``"worse_at_lower_cost"``: less
            accurate at less; ``"worse"``: less accurate at no less. Computation within 5 % counts
            as equal, see ``with_cost_tolerance``.
    """

    key: str
    label: str
    role: str
    difference: float
    low: float
    high: float
    relative_computation: float | None
    outcome: ComparisonOutcome


def comparison_outcome(
    difference: PairedDifference, relative_computation: float | None
) -> ComparisonOutcome:
    """Decide what a difference in accuracy means at the costs that go with it."""
    ratio = float("inf") if relative_computation is None else relative_computation
    if difference.low > 0:
        return "better" if ratio <= with_cost_tolerance(1.0) else "better_at_higher_cost"
    if difference.high < 0:
        return "worse" if with_cost_tolerance(ratio) >= 1.0 else "worse_at_lower_cost"
    return "tie"


def beyond_marginals(comparisons: Sequence[Comparison]) -> bool | None:
    """Say whether the gate is more accurate than its mode table and its shuffled options and patterns.

    None if it was not compared with them.
    """
    baselines = [c for c in comparisons if c.key in _MARGINALS]
    return all(c.low > 0 for c in baselines) if baselines else None


def verdict_sentences(
    comparisons: Sequence[Comparison], accuracy: float, patterns: float
) -> tuple[str, ...]:
    """Put the comparisons into a few sentences.

    The static table, the cascade and the exits are chosen from what includes uniform settings, on
    other images. Where a uniform setting with room for its cost is not beaten, the gate is not said
    to beat any of them.

    Args:
        comparisons: The gate against every other method.
        accuracy: The gate's accuracy in percent.
        patterns: Distinct bit patterns that the gate used.
    """
    sentences = []
    reference = next((c for c in comparisons if c.key == "full"), None)
    if reference is not None and reference.relative_computation is not None:
        sentences.append(
            f"The gate reaches {accuracy:.2f} %, {_signed(reference)} points from full precision, "
            f"with {100 * reference.relative_computation:.3g} % of its computation."
        )
    static = patterns == 1  # then the baselines with its marginals are itself
    baselines = [
        c for c in comparisons if c.role == "matched" and not (static and c.key in _MARGINALS)
    ]
    uniform = [c for c in comparisons if c.role == "fixed" and _costs_no_more(c) and c.low <= 0]
    better = [c for c in baselines if c.outcome == "better"]
    unclaimed = [c for c in better if uniform and c.key not in _MARGINALS]
    won = [c for c in better if c not in unclaimed]
    tied = [c for c in (*baselines, *uniform) if c.outcome == "tie"]
    better_at_higher_cost = [c for c in baselines if c.outcome == "better_at_higher_cost"]
    lost = [c for c in (*baselines, *uniform) if c.outcome in ("worse_at_lower_cost", "worse")]
    if won:
        sentences.append(f"At its own cost it beats, at 95 %: {_listed(won)}.")
    if better_at_higher_cost:
        sentences.append(
            f"It is more accurate, but at more computation, than: {_listed(better_at_higher_cost)}."
        )
    if lost:
        sentences.append(f"It does not beat: {_listed(lost)}.")
    if tied:
        sentences.append(f"These images cannot tell it from: {_listed(tied)}.")
    if unclaimed:
        sentences.append(
            f"Nothing is claimed against {_named(unclaimed)}, for {_named(uniform)} at no more "
            "than its cost is not beaten."
        )
    learned = beyond_marginals(comparisons)
    if static:
        sentences.append("It gives every image the same bits: it is a static table.")
        return tuple(sentences)
    if learned is True:
        marginals = [c for c in comparisons if c.key in _MARGINALS]
        sentences.append(
            "It has learned which image needs which bits: it is more accurate than "
            f"{_named(marginals)}."
        )
    if learned is False:
        sentences.append(_nothing_learned(comparisons))
    return tuple(sentences)


def _costs_no_more(comparison: Comparison) -> bool:
    """Return whether the other method costs no more than the gate."""
    ratio = comparison.relative_computation
    return ratio is None or with_cost_tolerance(ratio) >= 1.0


def _nothing_learned(comparisons: Sequence[Comparison]) -> str:
    """Tell a gate that is no better than its marginals from one of which these images cannot say."""
    baselines = [c for c in comparisons if c.key in _MARGINALS and c.low <= 0]
    below = [c for c in baselines if c.difference <= 0]
    if below:
        return f"It has learned nothing beyond its marginals: it is no more accurate than {_named(below)}."
    above = "; ".join(f"{c.low:+.2f} to {c.high:+.2f} points from {c.label}" for c in baselines)
    return (
        "That it has learned anything beyond its marginals is not shown by these images: it lies "
        f"{above}."
    )


def _signed(comparison: Comparison) -> str:
    return f"{comparison.difference:+.2f}"


def _named(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(c.label for c in comparisons)


def _listed(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(f"{c.label} ({_signed(c)}{_cost_note(c)})" for c in comparisons)


def _cost_note(comparison: Comparison) -> str:
    """Say when a baseline that should cost the same does not."""
    ratio = comparison.relative_computation
    if ratio is None or abs(ratio - 1) <= COST_TOLERANCE:
        return ""
    return f" at {ratio:.2f} x its computation"
