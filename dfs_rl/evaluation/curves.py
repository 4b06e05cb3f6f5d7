"""Curves of accuracy over computation: the area that they dominate, and what they reach at a given computation."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from dfs_rl.errors import ConfigError

COMPUTATIONS = (0.5, 0.75, 1.0, 1.5, 3.0)
"""Percent; where gates are compared where nothing else is asked for."""
REPORTED_COMPUTATIONS = (*COMPUTATIONS, 20.0, 50.0)
"""Percent; where curves are read off if they reach it: the last two are budgets of the paper of DFS."""
REFERENCE_COMPUTATION = 10.0
"""Percent; where areas end with low bit widths, all of which lie left of it."""


class CurvePoint(NamedTuple):
    """One operating point.

    Attributes:
        computation: Percent, above 0.
        accuracy: Percent.
    """

    computation: float
    accuracy: float


def hypervolume_reference_point(
    running: Sequence[CurvePoint], skipping: Sequence[CurvePoint], gates: Sequence[CurvePoint]
) -> CurvePoint:
    """Return the corner that the areas of a comparison end at.

    With low bit widths it is the accuracy of the cheapest setting that runs the layers, and 10 %. A
    menu with quantized options dearer than that, such as the one of DFS, has gates that spend more
    and whose cheapest option may be as accurate as any, so that nothing would be left to tell them
    apart by: there it is what is worst about any uniform setting, and so it is where no gate spends
    less than 10 %.

    Args:
        running: The uniform settings that run the layers, cheapest first.
        skipping: The one that skips them, if the menu has it.
        gates: All points of all gates.
    """
    is_low = all(point.computation < REFERENCE_COMPUTATION for point in running[:-1])
    if is_low and any(point.computation < REFERENCE_COMPUTATION for point in gates):
        return CurvePoint(REFERENCE_COMPUTATION, running[0].accuracy)
    settings = [*running, *skipping]
    return CurvePoint(
        max(point.computation for point in settings), min(point.accuracy for point in settings)
    )


def pareto_front(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the points that are more accurate than every cheaper one, cheapest first."""
    kept: list[CurvePoint] = []
    for point in sorted(points, key=lambda p: (p.computation, -p.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def hypervolume(points: Sequence[CurvePoint], *, reference_point: CurvePoint) -> float:
    """Return the area that points dominate, computation on a logarithmic axis (Zitzler and Thiele, 1999).

    A point dominates what is at least as dear and at most as accurate; the area ends at
    ``reference_point``. Points beyond it add nothing.

    Args:
        points: Operating points of one method.
        reference_point: The corner that every useful point dominates.

    Returns:
        Percent of accuracy times decades of computation.

    Raises:
        ConfigError: If a computation is not positive.
    """
    for point in (*points, reference_point):
        if not point.computation > 0:
            raise ConfigError(
                f"computation is {point.computation}; a logarithmic axis needs positive ones."
            )
    front = [p for p in pareto_front(points) if p.computation < reference_point.computation]
    if not front:
        return 0.0
    ends = [*(p.computation for p in front[1:]), reference_point.computation]
    return sum(
        math.log10(end / point.computation) * max(0.0, point.accuracy - reference_point.accuracy)
        for point, end in zip(front, ends, strict=True)
    )


def accuracy_at(points: Sequence[CurvePoint], computation: float) -> float | None:
    """Return the accuracy of a method at a computation between those of its points, linear over the logarithm.

    Points that a cheaper one beats do not count, for nobody would use them; up to the dearest of
    them the best one holds. None outside the points' range.
    """
    front = pareto_front(points)
    costs = [point.computation for point in front]
    if not front or not costs[0] <= computation <= max(point.computation for point in points):
        return None
    if computation >= costs[-1]:
        return front[-1].accuracy
    after = bisect.bisect_left(costs, computation)
    if costs[after] == computation:
        return front[after].accuracy
    low, high = front[after - 1], front[after]
    share = math.log(computation / low.computation) / math.log(high.computation / low.computation)
    return low.accuracy + share * (high.accuracy - low.accuracy)
