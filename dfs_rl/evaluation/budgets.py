"""What each method does at the budgets that were asked for, and which one to ship there."""

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from dfs_rl.evaluation.comparison_records import GATE, BudgetResult, Point
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.verdict import with_cost_tolerance


def results_at_budgets(
    budgets: Sequence[float],
    points: Sequence[Point],
    references: Sequence[Point],
    correct: Mapping[str, Tensor],
) -> tuple[BudgetResult, ...]:
    """Sort points by the budgets that gates were asked for.

    A method stands at a budget with the point that was asked to keep to it, or else with the one
    that ``select_points`` takes at no more than about its cost; uniform settings are static tables
    as well. The one to ship is taken from all in the same way.

    Args:
        budgets: Percent, lowest first.
        points: Gates and their baselines.
        references: Uniform settings that run the layers.
        correct: How often each point is right on each image of the selection split, by its label.

    Returns:
        The budgets; none if there is a kind of gate that stands at none of them, for then they do
        not tell everything.
    """
    by_family: dict[str, list[Point]] = {}
    for point in points:
        by_family.setdefault(point.family, []).append(point)
    for members in by_family.values():
        if members[0].kind == "static_table":
            members[:0] = [p for p in references if p.cotrained == members[0].cotrained]
    found = []
    for budget in budgets:
        at_budget = {
            family: point
            for family, members in by_family.items()
            for point in _point_at_budget(members, budget, correct)
        }
        recommended = select_points(_within([*references, *points], budget), correct)
        found.append(
            BudgetResult(
                budget=budget,
                recommended=recommended[0].label if recommended else None,
                tied=tuple(point.label for point in recommended[1:]),
                methods={family: point.label for family, point in at_budget.items()},
                over_budget=tuple(
                    p.label for p in at_budget.values() if p.budget == budget and exceeds_budget(p)
                ),
            )
        )
    covered = {family for at in found for family in at.methods}
    gates = (point for point in points if point.kind == GATE)
    return tuple(found) if all(gate.family in covered for gate in gates) else ()


def ranked_families(at: Sequence[BudgetResult], points: Sequence[Point]) -> list[str]:
    """Return the methods, gates first, and of each kind those first that stand at most budgets and are best on the selection split.

    Args:
        at: The budgets.
        points: All that stand there.
    """
    by_label = {point.label: point for point in points}
    members: dict[str, list[Point]] = {}
    for one in at:
        for family, label in one.methods.items():
            members.setdefault(family, []).append(by_label[label])

    def rank(family: str) -> tuple[bool, int, float]:
        found = members[family]
        mean = statistics.fmean(point.selection_accuracy for point in found)
        return found[0].kind != GATE, -len(found), -mean

    return sorted(members, key=rank)


def exceeds_budget(point: Point) -> bool:
    """Whether a point is a gate that spends more than it was asked to, but for chance."""
    if point.kind != GATE or point.budget is None:
        return False
    return point.computation.mean > with_cost_tolerance(point.budget)


def select_points(points: Sequence[Point], correct: Mapping[str, Tensor]) -> list[Point]:
    """Return the points that the selection split cannot tell apart from the best, the one to take first.

    Of many points on few images the most accurate one is the luckiest. Those that no other is above
    beyond chance are level; of them the simplest is taken, see ``Point.complexity``, and of equally
    simple ones the most accurate, then the cheapest.

    Args:
        points: What there is to choose from; of equals in everything the first is taken.
        correct: How often each is right on each image of the selection split, by its label.
    """
    tied: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.selection_accuracy, p.selection_computation)):
        ours = correct[point.label]
        if all(paired_difference(correct[other.label], ours).low <= 0 for other in tied):
            tied.append(point)
    return sorted(tied, key=lambda p: p.complexity)


def _point_at_budget(
    members: Sequence[Point], budget: float, correct: Mapping[str, Tensor]
) -> Sequence[Point]:
    """Return the point of one method that stands at a budget, if there is one."""
    targeted = [point for point in members if point.kind == GATE and point.budget == budget]
    return targeted[:1] or select_points(_within(members, budget), correct)[:1]


def _within(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the points that cost no more than about a budget on the selection split."""
    return [point for point in points if point.selection_computation <= with_cost_tolerance(budget)]
