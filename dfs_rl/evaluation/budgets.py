"""What each method does at the budgets that were asked for, and which one to ship there."""

import statistics
from collections.abc import Sequence

from dfs_rl.evaluation.comparison_records import GATE, AtBudget, Point
from dfs_rl.evaluation.verdict import SAME_COST


def at_budgets(
    budgets: Sequence[float], points: Sequence[Point], references: Sequence[Point]
) -> tuple[AtBudget, ...]:
    """Sort points by the budgets that gates were asked for.

    A method stands at a budget with the point that was asked to keep to it, or else with its best one at no more than about its
    cost; uniform settings are static tables as well. The one to ship is the best of all at no more than about its cost. What is
    best, and what it costs, is said by the selection split.

    Args:
        budgets: Percent, lowest first.
        points: Gates and their rivals.
        references: Uniform settings that run the layers.

    Returns:
        The budgets; none if there is a kind of gate that stands at none of them, for then they do not tell everything.
    """
    by_family: dict[str, list[Point]] = {}
    for point in points:
        by_family.setdefault(point.family, []).append(point)
    for members in by_family.values():
        if members[0].kind == "static_table":
            members.extend(p for p in references if p.cotrained == members[0].cotrained)
    found = []
    for budget in budgets:
        standing = {
            family: point
            for family, members in by_family.items()
            for point in _standing(members, budget)
        }
        ship = _best_within([*points, *references], budget)
        found.append(
            AtBudget(
                budget=budget,
                ship=ship[0].label if ship else None,
                methods={family: point.label for family, point in standing.items()},
                over=tuple(p.label for p in standing.values() if p.budget == budget and misses(p)),
            )
        )
    told = {family for at in found for family in at.methods}
    gates = (point for point in points if point.kind == GATE)
    return tuple(found) if all(gate.family in told for gate in gates) else ()


def ranked_families(at: Sequence[AtBudget], points: Sequence[Point]) -> list[str]:
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


def misses(point: Point) -> bool:
    """Whether a point is a gate that spends more than it was asked to, but for chance."""
    if point.kind != GATE or point.budget is None:
        return False
    return point.computation.mean > (1 + SAME_COST) * point.budget


def _standing(members: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the point of one method that stands at a budget, if there is one."""
    asked = [point for point in members if point.kind == GATE and point.budget == budget]
    return asked[:1] or _best_within(members, budget)


def _best_within(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the best point at no more than about a cost, if there is one; of equal ones the cheapest.

    As everywhere, costs within ``SAME_COST`` count as equal: rivals are searched up to that far above what a gate costs.
    """
    within = [p for p in points if p.selection_computation <= (1 + SAME_COST) * budget]
    return sorted(within, key=lambda p: (-p.selection_accuracy, p.selection_computation))[:1]
