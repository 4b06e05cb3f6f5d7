"""Results of each method at the budgets of the gates, and the recommended method at each."""

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from dfs_rl.evaluation.comparison_records import GATE, BudgetResult, Point
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.timing import CostName
from dfs_rl.evaluation.verdict import with_cost_tolerance


def results_at_budgets(
    budgets: Sequence[float],
    points: Sequence[Point],
    references: Sequence[Point],
    correct: Mapping[str, Tensor],
) -> tuple[BudgetResult, ...]:
    """Choose a point of each method, and a recommended point, at each budget.

    A gate trained for a budget represents its method there. Otherwise ``select_points`` chooses
    among the method's points within the budget, up to the cost tolerance. Uniform settings count
    as static bit tables. The recommended point is chosen from all points in the same way.

    ``points`` are gates and their baselines, ``references`` the uniform settings that run layers;
    ``correct`` has the share of correct predictions on each image of the selection split, ``[n]``,
    by label. The result is empty if a family of gates has no point at any budget.
    """
    by_family: dict[str, list[Point]] = {}
    for point in points:
        by_family.setdefault(point.family, []).append(point)
    for members in by_family.values():
        if members[0].kind == "static_table":
            members[:0] = [p for p in references if p.cotrained == members[0].cotrained]
    found = []
    for budget in budgets:
        at_budget: dict[str, Point] = {}
        for family, members in by_family.items():
            trained = [p for p in members if p.kind == GATE and p.budget == budget]
            for point in (trained or select_points(_within(members, budget), correct))[:1]:
                at_budget[family] = point
        best = select_points(_within([*references, *points], budget), correct)
        over = [p for p in at_budget.values() if p.budget == budget and exceeds_budget(p)]
        found.append(
            BudgetResult(
                budget=budget,
                recommended=best[0].label if best else None,
                tied=tuple(point.label for point in best[1:]),
                methods={family: point.label for family, point in at_budget.items()},
                over_budget=tuple(point.label for point in over),
            )
        )
    covered = {family for at in found for family in at.methods}
    complete = all(point.family in covered for point in points if point.kind == GATE)
    return tuple(found) if complete else ()


def ranked_families(at: Sequence[BudgetResult], points: Sequence[Point]) -> list[str]:
    """Rank the methods: gates first, then by number of budgets, then by selection accuracy."""
    by_label = {point.label: point for point in points}

    def rank(family: str) -> tuple[bool, int, float]:
        found = [by_label[one.methods[family]] for one in at if family in one.methods]
        mean = statistics.fmean(point.selection_accuracy for point in found)
        return found[0].kind != GATE, -len(found), -mean

    return sorted(dict.fromkeys(family for one in at for family in one.methods), key=rank)


def exceeds_budget(point: Point) -> bool:
    """Return True if a point is a gate whose cost exceeds its budget by more than the tolerance."""
    budget = point.budget if point.kind == GATE else None
    return budget is not None and point.computation.mean > with_cost_tolerance(budget)


def select_points(
    points: Sequence[Point], correct: Mapping[str, Tensor], cost: CostName = "computation"
) -> list[Point]:
    """Return the points statistically tied with the best on the selection split, best choice first.

    With many points and few images, the highest accuracy is partly luck. Points that are not
    significantly worse than a more accurate tied point are therefore equal. Among them the
    simplest (``Point.complexity``) is first, then the most accurate, then the cheapest.
    ``correct`` is as in ``results_at_budgets``.
    """
    tied: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.selection_accuracy, p.selection_cost(cost))):
        ours = correct[point.label]
        if all(paired_difference(correct[other.label], ours).low <= 0 for other in tied):
            tied.append(point)
    return sorted(tied, key=lambda p: p.complexity)


def _within(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """Return the points within a budget on the selection split, up to the cost tolerance."""
    return [point for point in points if point.selection_computation <= with_cost_tolerance(budget)]
