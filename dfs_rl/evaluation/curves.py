"""Curves of accuracy over computation: the area that they dominate, and what they reach at a given computation."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from dfs_rl.errors import ConfigError

COMPUTATIONS = (0.5, 0.75, 1.0, 1.5, 3.0)
"""Percent; where gates are compared where nothing else is asked for."""


WORST_COMPUTATION = 10.0
"""Percent; where areas end: every low bit width lies left of it."""


class CurvePoint(NamedTuple):
    """One operating point.

    Attributes:
        computation: Percent, above 0.
        accuracy: Percent.
    """

    computation: float
    accuracy: float


def staircase(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the points that are more accurate than every cheaper one, cheapest first."""
    kept: list[CurvePoint] = []
    for point in sorted(points, key=lambda p: (p.computation, -p.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def hypervolume(points: Sequence[CurvePoint], *, worst: CurvePoint) -> float:
    """Return the area that points dominate, computation on a logarithmic axis (Zitzler and Thiele, 1999).

    A point dominates what is at least as dear and at most as accurate; the area ends at ``worst``. Points beyond it add nothing.

    Args:
        points: Operating points of one method.
        worst: The corner that every useful point dominates.

    Returns:
        Percent of accuracy times decades of computation.

    Raises:
        ConfigError: If a computation is not positive.
    """
    for point in (*points, worst):
        if not point.computation > 0:
            raise ConfigError(
                f"computation is {point.computation}; a logarithmic axis needs positive ones."
            )
    steps = [p for p in staircase(points) if p.computation < worst.computation]
    if not steps:
        return 0.0
    ends = [*(p.computation for p in steps[1:]), worst.computation]
    return sum(
        math.log10(end / step.computation) * max(0.0, step.accuracy - worst.accuracy)
        for step, end in zip(steps, ends, strict=True)
    )


def accuracy_at(points: Sequence[CurvePoint], computation: float) -> float | None:
    """Return the accuracy of a method at a computation between those of its points, linear over the logarithm.

    Points that a cheaper one beats do not count, for nobody would use them; up to the dearest of them the best one holds. None
    outside the points' range.
    """
    steps = staircase(points)
    costs = [point.computation for point in steps]
    if not steps or not costs[0] <= computation <= max(point.computation for point in points):
        return None
    if computation >= costs[-1]:
        return steps[-1].accuracy
    after = bisect.bisect_left(costs, computation)
    if costs[after] == computation:
        return steps[after].accuracy
    low, high = steps[after - 1], steps[after]
    share = math.log(computation / low.computation) / math.log(high.computation / low.computation)
    return low.accuracy + share * (high.accuracy - low.accuracy)
