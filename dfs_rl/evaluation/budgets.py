"""What each method does at the budgets that were asked for, and which one to ship there."""

import statistics
from collections.abc import Sequence

from dfs_rl.evaluation.comparison_records import GATE, AtBudget, Point

_CLOSE = 0.01
"""A mean over the selection split that is no more than 1 % above a budget keeps to it: dials and tables come in steps."""


def at_budgets(points: Sequence[Point], references: Sequence[Point]) -> tuple[AtBudget, ...]:
    """Sort points by the budgets that their gates were asked for, lowest first.

    A method stands at a budget with the point that was asked to keep to it, or else with its best one within it; uniform settings
    are static tables as well. The one to ship is the best of all within it. What is best, and what it costs, is said by the
    selection split.

    Args:
        points: Gates and their rivals.
        references: Uniform settings that run the layers.

    Returns:
        The budgets; none if there is a gate that stands at none of them, for then they do not tell everything.
    """
    gates = [point for point in points if point.kind == GATE]
    budgets = sorted({gate.budget for gate in gates if gate.budget is not None})
    by_family: dict[str, list[Point]] = {}
    for point in points:
        by_family.setdefault(point.family, []).append(point)
    tables = [found for found in by_family.values() if found[0].kind == "static_table"]
    if len(tables) == 1:  # with a co-trained backbone there are two kinds
        tables[0].extend(references)
    found = []
    for budget in budgets:
        standing = {
            family: point.label
            for family, members in by_family.items()
            for point in _standing(members, budget)
        }
        ship = _best_within([*points, *references], budget)
        found.append(
            AtBudget(budget=budget, ship=ship[0].label if ship else None, methods=standing)
        )
    told = {label for at in found for label in at.methods.values()}
    return tuple(found) if all(gate.label in told for gate in gates) else ()


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


def _standing(members: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the point of one method that stands at a budget, if there is one."""
    asked = [point for point in members if point.kind == GATE and point.budget == budget]
    return asked[:1] or _best_within(members, budget)


def _best_within(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the best point within a budget, if there is one; of equal ones the cheapest."""
    within = [p for p in points if p.selection_computation <= (1 + _CLOSE) * budget]
    return sorted(within, key=lambda p: (-p.selection_accuracy, p.selection_computation))[:1]
