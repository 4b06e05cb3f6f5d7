"""Pareto fronts of accuracy over computation: hypervolume and interpolated accuracy."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from dfs_rl.errors import ConfigError

COMPUTATIONS = (0.5, 0.75, 1.0, 1.5, 3.0)
"""Default computations, in percent, at which gates are compared."""
REPORTED_COMPUTATIONS = (*COMPUTATIONS, 20.0, 50.0)
"""Computations, in percent, at which accuracy is interpolated; the last two are from the DFS paper.

A curve that does not reach a computation has no entry there.
"""
REFERENCE_COMPUTATION = 10.0
"""Reference computation of hypervolumes, in percent, for bit options that are all cheaper."""


class CurvePoint(NamedTuple):
    """One operating point, both in percent; the computation is above 0."""

    computation: float
    accuracy: float


def hypervolume_reference_point(
    running: Sequence[CurvePoint], skipping: Sequence[CurvePoint], gates: Sequence[CurvePoint]
) -> CurvePoint:
    """Return the reference point of the hypervolumes of a comparison.

    If every running setting but the most expensive costs less than 10 %, and some gate does too,
    the point is the accuracy of the cheapest running setting at 10 % computation.

    Otherwise it is the lowest accuracy and the largest computation of all uniform settings. Bit
    options with expensive quantized options, such as those of DFS, need it: their gates spend more
    than 10 %, and their cheapest option may be as accurate as any other, so the first point would
    not separate the gates.

    ``running`` are uniform settings that run the layers, cheapest first; ``skipping`` is the one
    that skips them, or empty.
    """
    is_low = all(point.computation < REFERENCE_COMPUTATION for point in running[:-1])
    if is_low and any(point.computation < REFERENCE_COMPUTATION for point in gates):
        return CurvePoint(REFERENCE_COMPUTATION, running[0].accuracy)
    settings = [*running, *skipping]
    return CurvePoint(
        max(point.computation for point in settings), min(point.accuracy for point in settings)
    )


def pareto_front(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the Pareto front: points more accurate than every cheaper one, cheapest first."""
    kept: list[CurvePoint] = []
    for point in sorted(points, key=lambda p: (p.computation, -p.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def hypervolume(points: Sequence[CurvePoint], *, reference_point: CurvePoint) -> float:
    """Return the hypervolume of points over log computation (Zitzler and Thiele, 1999).

    Points beyond ``reference_point`` contribute nothing. The unit is percent of accuracy times
    decades of computation.

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
    """Interpolate a method's accuracy at a computation, linear in the logarithm of computation.

    Only points on the Pareto front count; its last accuracy applies up to the most expensive point
    of all. Outside the range of the points the result is None.
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
