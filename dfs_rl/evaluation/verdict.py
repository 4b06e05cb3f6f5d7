"""Verdict on a gate: statistical comparison with its baselines, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.evaluation.metrics import PairedDifference

ComparisonOutcome = Literal[
    "better", "better_at_higher_cost", "tie", "worse_at_lower_cost", "worse"
]

# Costs within 5 % count as equal: cost-matched baselines cannot match the gate's cost exactly.
COST_TOLERANCE = 0.05


def with_cost_tolerance(cost: float) -> float:
    """Return the largest cost that counts as equal to ``cost``, for gates and baselines."""
    return (1 + COST_TOLERANCE) * cost


# Baselines with the gate's marginal choices of options, independent of the image.
_MARGINALS = ("mode_table", "random", "patterns")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of the gate with one baseline on the same images.

    Attributes:
        key: Key of the baseline, as in ``MethodResult``.
        label: Name of the baseline in tables.
        role: Role of the baseline, as in ``MethodResult``.
        difference: Accuracy of the gate minus accuracy of the baseline, in points.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of the 95 % interval of the difference.
        relative_computation: Computation of the gate divided by that of the baseline, None if the
            latter is 0.
        outcome: ``"better"``: more accurate at no more computation; ``"better_at_higher_cost"``:
            more accurate at more computation; ``"tie"``: no significant difference;
            ``"worse_at_lower_cost"``: less accurate at less computation; ``"worse"``: less
            accurate at no less computation. Computation within 5 % counts as equal
            (``with_cost_tolerance``).
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
    """Classify a difference in accuracy, given the relative cost of the two methods.

    Args:
        difference: Accuracy of the gate minus accuracy of the baseline.
        relative_computation: Computation of the gate divided by that of the baseline, None if the
            latter is 0.
    """
    ratio = float("inf") if relative_computation is None else relative_computation
    if difference.low > 0:
        return "better" if ratio <= with_cost_tolerance(1.0) else "better_at_higher_cost"
    if difference.high < 0:
        return "worse" if with_cost_tolerance(ratio) >= 1.0 else "worse_at_lower_cost"
    return "tie"


def beyond_marginals(comparisons: Sequence[Comparison]) -> bool | None:
    """Return True if the gate is significantly more accurate than all baselines with its marginals.

    These are its mode table, its options shuffled across images, and its patterns shuffled across
    images. None if the gate is compared with none of them.
    """
    baselines = [c for c in comparisons if c.key in _MARGINALS]
    return all(c.low > 0 for c in baselines) if baselines else None


def verdict_sentences(
    comparisons: Sequence[Comparison], accuracy: float, patterns: float
) -> tuple[str, ...]:
    """Summarize the comparisons in sentences.

    The static bit table, the cascade and the exits are chosen on other images from candidates that
    include the uniform settings. If the gate does not beat a uniform setting of no larger cost,
    the sentences therefore claim no advantage over any of them.

    Args:
        comparisons: Comparison of the gate with every other method.
        accuracy: Accuracy of the gate in percent.
        patterns: Number of distinct bit patterns of the gate.

    Returns:
        Verdict, one sentence per entry.
    """
    sentences = []
    reference = next((c for c in comparisons if c.key == "full"), None)
    if reference is not None and reference.relative_computation is not None:
        sentences.append(
            f"The gate reaches {accuracy:.2f} %, {_signed(reference)} points from full precision, "
            f"with {100 * reference.relative_computation:.3g} % of its computation."
        )
    static = patterns == 1  # the baselines with its marginals are then the gate itself
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
    """Return True if the baseline costs no more than the gate, up to the cost tolerance."""
    ratio = comparison.relative_computation
    return ratio is None or with_cost_tolerance(ratio) >= 1.0


def _nothing_learned(comparisons: Sequence[Comparison]) -> str:
    """Describe a gate without a proven advantage over its marginals.

    The sentence separates a gate that is no more accurate from a difference that is inconclusive.
    """
    baselines = [c for c in comparisons if c.key in _MARGINALS and c.low <= 0]
    below = [c for c in baselines if c.difference <= 0]
    if below:
        return (
            "It has learned nothing beyond its marginals: it is no more accurate than "
            f"{_named(below)}."
        )
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
    """Return a note on the relative cost, empty if the costs count as equal."""
    ratio = comparison.relative_computation
    if ratio is None or abs(ratio - 1) <= COST_TOLERANCE:
        return ""
    return f" at {ratio:.2f} x its computation"
