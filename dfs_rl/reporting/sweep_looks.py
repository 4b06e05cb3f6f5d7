"""What all pictures of a sweep share: how its best trials look, what axes are called, and how far they reach."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dfs_rl.evaluation.sweep_records import SweepRecord
from dfs_rl.reporting import style

_REACH = 4.0
"""How often the way from the median to the best value fits on an axis below the median; what diverged lies beyond."""
_LONGEST_NAME = 28


class Look(NamedTuple):
    """How a trial is drawn.

    Attributes:
        colour: Of its lines and markers.
        marker: Its marker.
        name: What legends call it.
    """

    colour: str
    marker: str
    name: str


def best_looks(record: SweepRecord) -> dict[str, Look]:
    """Return how the best trials look, by name: each in its colour, or all in one if there are more of them than colours."""
    if len(record.best) > len(style.GATE_COLOURS):
        return {name: Look(style.VERMILION, "*", "best trials") for name in record.best}
    looks = zip(record.best, style.GATE_COLOURS, style.GATE_MARKERS, strict=False)
    return {
        name: Look(colour, marker, f"trial {style.short(name, _LONGEST_NAME)}")
        for name, colour, marker in looks
    }


def value_label(record: SweepRecord, name: str) -> str:
    """Return what an axis calls one of the objective's values."""
    unit = record.objective.units[record.objective.names.index(name)]
    return f"{name}, {unit}" if unit else name


def value_range(values: Sequence[float], *, highest: bool) -> tuple[float, float]:
    """Return the ends of an axis for values of an objective: all of them, but for those that are far worse than most.

    Args:
        values: At least one.
        highest: Whether the highest is the best.
    """
    low, high, middle = min(values), max(values), statistics.median(values)
    if highest and high > middle:
        low = max(low, middle - _REACH * (high - middle))
    if not highest and low < middle:
        high = min(high, middle + _REACH * (middle - low))
    return low, high


def wrapped(name: str, width: int) -> str:
    """Return a dotted name in lines of at most about ``width`` characters, broken after dots and underscores where it can be."""
    lines = [""]
    for part in name.replace(".", ".\n").replace("_", "_\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    pieces = [line[i : i + width] for line in lines for i in range(0, max(len(line), 1), width)]
    return "\n".join(pieces)
