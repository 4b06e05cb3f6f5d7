"""Verdict on a gate: statistical comparison with its baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.costs import COMPUTATION
from dfs_rl.evaluation.metrics import PairedDifference

ComparisonOutcome = Literal[
    "better", "better_at_higher_cost", "tied", "worse_at_lower_cost", "worse"
]

# Costs within 5 % count as equal: cost-matched baselines cannot match the gate's cost exactly.
COST_TOLERANCE = 0.05
# Baselines with the gate's marginal choices of options, independent of the image.
_MARGINALS = ("mode_table", "random", "patterns")


def with_cost_tolerance(cost: float) -> float:
    """Return the largest cost that counts as equal to ``cost``, for gates and baselines."""
    return (1 + COST_TOLERANCE) * cost


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of the gate with one baseline on the same images."""

    key: str  # key, label and role of the baseline, as in ``MethodResult``
    label: str
    role: str
    difference: float  # accuracy of the gate minus accuracy of the baseline, in points
    low: float  # ends of the 95 % interval of the difference
    high: float
    relative_computation: float | None  # of the gate and the baseline, None if the latter is 0
    outcome: ComparisonOutcome
    relative_milliseconds: float | None = None  # the same of the measured times, None without them


def comparison_outcome(
    difference: PairedDifference, relative_computation: float | None
) -> ComparisonOutcome:
    """Classify a gate by its accuracy and computation relative to a baseline.

    ``"better"`` is significantly more accurate at no more computation, and ``"worse"`` less
    accurate at no less; computation within 5 % counts as equal.
    """
    ratio = float("inf") if relative_computation is None else relative_computation
    if difference.low > 0:
        return "better" if ratio <= with_cost_tolerance(1.0) else "better_at_higher_cost"
    if difference.high < 0:
        return "worse" if with_cost_tolerance(ratio) >= 1.0 else "worse_at_lower_cost"
    return "tied"


def beyond_marginals(comparisons: Sequence[Comparison]) -> bool | None:
    """Return True if the gate is significantly more accurate than all baselines with its marginals.

    These are its mode table, and its options and patterns shuffled across images. None if the gate
    is compared with none of them.
    """
    baselines = [c for c in comparisons if c.key in _MARGINALS]
    return all(c.low > 0 for c in baselines) if baselines else None


def counted_wins(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Return the comparisons with baselines at the gate's cost that the gate wins.

    The static bit table, the rules and the exits are chosen on other images from
    candidates that include the uniform settings. A win over them counts only if the gate is also
    significantly better than each uniform setting of up to 5 % more cost.
    """
    uniform_beaten = all(
        c.low > 0
        for c in comparisons
        if c.role == "fixed"
        and (c.relative_computation is None or with_cost_tolerance(c.relative_computation) >= 1.0)
    )
    return tuple(
        c
        for c in comparisons
        if c.role == "matched" and c.outcome == "better" and (uniform_beaten or c.key in _MARGINALS)
    )


def budget_sentences(
    cost: float, budget: float | None, in_words: Callable[[float], str]
) -> tuple[str, ...]:
    """Return a sentence if a gate's mean cost is above its budget by more than the tolerance.

    ``in_words`` gives the text of a cost in percent.
    """
    if budget is None or cost <= with_cost_tolerance(budget):
        return ()
    above = f"over {100 * COST_TOLERANCE:g} % above its budget of {in_words(budget)}"
    return (f"The gate costs {in_words(cost)}, {above}.",)


def verdict_sentences(
    comparisons: Sequence[Comparison],
    *,
    accuracy: float,
    computation: float,
    patterns: float,
    milliseconds: float | None = None,
    cost_model: str = COMPUTATION,
) -> tuple[str, ...]:
    """Summarize the comparisons of a gate with every other method in at most six sentences.

    What beats the gate comes before what it beats. The other figures are those of the gate:
    accuracy and computation, by the cost model, in percent, the number of distinct bit patterns,
    and the measured time, None without.
    """
    sentences, no_more = [], f"up to {100 * COST_TOLERANCE:g} % more {cost_model}"
    full = {c.key: c for c in comparisons}.get("full")
    if full is not None:
        sentences.append(
            f"The gate has {accuracy:.2f} % accuracy, {full.difference:+.2f} points from full "
            f"precision, at {computation:.3g} % {cost_model}."
        )
    if patterns == 1:  # the baselines with its marginals are then the gate itself
        sentences.append("The gate chooses the same bits for each image, as a static bit table.")
    above = [
        f"{c.label}{' (significantly)' if c.high < 0 else ''}"
        for c in comparisons
        if c.role in ("fixed", "matched")
        and c.key not in _MARGINALS
        and c.difference < 0
        and (c.relative_computation is None or with_cost_tolerance(c.relative_computation) >= 1.0)
    ]
    if above:
        sentences.append(f"Baselines that are more accurate at {no_more}: {'; '.join(above)}.")
    if any(c.role == "matched" for c in comparisons):
        wins = counted_wins(comparisons)
        won = "; ".join(c.label for c in wins if patterns > 1 or c.key not in _MARGINALS)
        sentences.append(
            f"It is significantly better at {no_more} than: {won or 'none of its baselines'}."
        )
    learned = beyond_marginals(comparisons)
    if learned is not None and patterns > 1:
        level = "; ".join(c.label for c in comparisons if c.key in _MARGINALS and c.low <= 0)
        sentences.append(
            "It adapts to the image: it is significantly better than its own options on other "
            "images."
            if learned
            else "It is not shown to adapt to the image, because it is not significantly better "
            f"than: {level}."
        )
    if milliseconds is not None:
        share = ""
        if full is not None and full.relative_milliseconds is not None:
            share = f", {100 * full.relative_milliseconds:.3g} % of that of full precision"
        faster = [
            c.label
            for c in comparisons
            if c.role in ("fixed", "matched")
            and c.key not in _MARGINALS
            and c.low <= 0
            and (c.relative_milliseconds or 0.0) > with_cost_tolerance(1.0)
        ]
        sentences.append(
            f"Its measured time is {milliseconds:.3g} ms per image{share}. Baselines over "
            f"{100 * COST_TOLERANCE:g} % faster that are not significantly less accurate: "
            f"{'; '.join(faster) or 'none'}."
        )
    return tuple(sentences)
