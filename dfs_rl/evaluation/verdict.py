"""What a gate's figures prove and what they do not, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.evaluation.metrics import PairedDifference

Outcome = Literal["beats", "dearer", "level", "cheaper", "loses"]

# Costs within 5 % count as equal: the rivals at the gate's cost cannot hit it exactly.
SAME_COST = 0.05


def room(cost: float) -> float:
    """Return the highest cost that counts as no more than ``cost``, for gates and baselines alike."""
    return (1 + SAME_COST) * cost


# The rivals that know what the gate does, but not to which image.
_MARGINALS = ("mode_table", "random", "patterns")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gate against one other method on the same images.

    Attributes:
        key: The other method, see ``Method``.
        label: Its name in tables.
        role: Its role, see ``Method``.
        difference: Accuracy of the gate minus its accuracy, in points.
        low: Lower end of the 95 % interval.
        high: Upper end of it.
        relative_computation: The gate's computation over its computation, None where that is 0.
        outcome: ``"beats"``: more accurate at no more computation; ``"dearer"``: more accurate at
            more; ``"level"``: no difference shown; ``"cheaper"``: less accurate at less;
            ``"loses"``: less accurate at no less. Computation within 5 % counts as equal, see ``room``.
    """

    key: str
    label: str
    role: str
    difference: float
    low: float
    high: float
    relative_computation: float | None
    outcome: Outcome


def outcome_of(difference: PairedDifference, relative_computation: float | None) -> Outcome:
    """Decide what a difference in accuracy means at the costs that go with it."""
    ratio = float("inf") if relative_computation is None else relative_computation
    if difference.low > 0:
        return "beats" if ratio <= room(1.0) else "dearer"
    if difference.high < 0:
        return "loses" if room(ratio) >= 1.0 else "cheaper"
    return "level"


def beyond_marginals(comparisons: Sequence[Comparison]) -> bool | None:
    """Say whether the gate is more accurate than its mode table and its shuffled options and patterns.

    None if it was not compared with them.
    """
    rivals = [c for c in comparisons if c.key in _MARGINALS]
    return all(c.low > 0 for c in rivals) if rivals else None


def verdict_sentences(
    comparisons: Sequence[Comparison], accuracy: float, patterns: float
) -> tuple[str, ...]:
    """Put the comparisons into a few sentences.

    The static table, the cascade and the exits are chosen from what includes uniform settings, on other images. Where a uniform setting
    with room for its cost is not beaten, the gate is not said to beat any of them.

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
    static = patterns == 1  # then the rivals with its marginals are itself
    rivals = [
        c for c in comparisons if c.role == "matched" and not (static and c.key in _MARGINALS)
    ]
    uniform = [c for c in comparisons if c.role == "fixed" and _has_room(c) and c.low <= 0]
    beaten = [c for c in rivals if c.outcome == "beats"]
    unclaimed = [c for c in beaten if uniform and c.key not in _MARGINALS]
    won = [c for c in beaten if c not in unclaimed]
    level = [c for c in (*rivals, *uniform) if c.outcome == "level"]
    dearer = [c for c in rivals if c.outcome == "dearer"]
    lost = [c for c in (*rivals, *uniform) if c.outcome in ("cheaper", "loses")]
    if won:
        sentences.append(f"At its own cost it beats, at 95 %: {_listed(won)}.")
    if dearer:
        sentences.append(f"It is more accurate, but at more computation, than: {_listed(dearer)}.")
    if lost:
        sentences.append(f"It does not beat: {_listed(lost)}.")
    if level:
        sentences.append(f"These images cannot tell it from: {_listed(level)}.")
    if unclaimed:
        sentences.append(
            f"Nothing is claimed against {_named(unclaimed)}, for {_named(uniform)} at no more than its cost is not beaten."
        )
    learned = beyond_marginals(comparisons)
    if static:
        sentences.append("It gives every image the same bits: it is a static table.")
        return tuple(sentences)
    if learned is True:
        marginals = [c for c in comparisons if c.key in _MARGINALS]
        sentences.append(
            f"It has learned which image needs which bits: it is more accurate than {_named(marginals)}."
        )
    if learned is False:
        sentences.append(_nothing_learned(comparisons))
    return tuple(sentences)


def _has_room(comparison: Comparison) -> bool:
    """Return whether the other method costs no more than the gate."""
    ratio = comparison.relative_computation
    return ratio is None or room(ratio) >= 1.0


def _nothing_learned(comparisons: Sequence[Comparison]) -> str:
    """Tell a gate that is no better than its marginals from one of which these images cannot say."""
    rivals = [c for c in comparisons if c.key in _MARGINALS and c.low <= 0]
    below = [c for c in rivals if c.difference <= 0]
    if below:
        return f"It has learned nothing beyond its marginals: it is no more accurate than {_named(below)}."
    above = "; ".join(f"{c.low:+.2f} to {c.high:+.2f} points from {c.label}" for c in rivals)
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
    """Say when a rival that should cost the same does not."""
    ratio = comparison.relative_computation
    if ratio is None or abs(ratio - 1) <= SAME_COST:
        return ""
    return f" at {ratio:.2f} x its computation"
