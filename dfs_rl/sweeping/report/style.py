"""What all pictures of a sweep share: how its best trials look, what axes are called, and how far they reach."""

import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord, TrialRecord, TrialStatus
from dfs_rl.sweeping.summary import STATUSES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REACH = 4.0
"""How often the way from the median to the best value fits on an axis below the median; what diverged lies beyond."""
_LONGEST_NAME = 9
_LEGEND_COLUMNS = 4


class TrialStyle(NamedTuple):
    """How a trial is drawn.

    Attributes:
        colour: Of its lines and markers.
        marker: Its marker.
        name: What legends call it.
    """

    colour: str
    marker: str
    name: str


STATUS_STYLES: dict[TrialStatus, TrialStyle] = {
    "finished": TrialStyle(style.BLUE, "o", STATUSES["finished"]),
    "stopped": TrialStyle(style.MUTED, "s", STATUSES["stopped"]),
    "failed": TrialStyle(style.INK, "x", STATUSES["failed"]),
    "unfinished": TrialStyle(style.GREEN, "^", STATUSES["unfinished"]),
}
"""How trials are drawn that are not among the best, by how they ended."""


def best_trial_styles(record: SweepRecord) -> dict[str, TrialStyle]:
    """Return how the best trials look, by name: each in its colour, or all in one if there are more of them than colours."""
    if len(record.best) > len(style.GATE_COLOURS):
        return {name: TrialStyle(style.VERMILION, "*", "best trials") for name in record.best}
    trial_styles = zip(record.best, style.GATE_COLOURS, style.GATE_MARKERS, strict=False)
    return {
        name: TrialStyle(colour, marker, f"trial {style.short_middle(name, _LONGEST_NAME)}")
        for name, colour, marker in trial_styles
    }


def best_last(record: SweepRecord) -> list[TrialRecord]:
    """Return the trials in the order in which they are drawn, the best one last and so on top."""
    others = [trial for trial in record.trials if trial.name not in record.best]
    return [*others, *(record.trial(name) for name in reversed(record.best))]


def legend_below(figure: "Figure", *all_axes: "Axes") -> None:
    """Name everything once that was drawn, below the axes, what was drawn last first."""
    named: dict[str, Artist] = {}
    for axes in all_axes:
        named |= {
            name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    if named:
        figure.legend(
            list(named.values())[::-1],
            list(named)[::-1],
            loc="lower left",
            ncols=_LEGEND_COLUMNS,
            bbox_to_anchor=(0.02, 0.0),
            frameon=False,
            fontsize=style.SMALL_SIZE,
        )


def value_label(record: SweepRecord, name: str) -> str:
    """Return what an axis calls one of the objective's values."""
    unit = record.objective.units[record.objective.names.index(name)]
    return f"{name}, {unit}" if unit else name


def value_range(values: Sequence[float], *, maximize: bool) -> tuple[float, float]:
    """Return the ends of an axis for values of an objective: all of them, but for those that are far worse than most.

    Args:
        values: At least one.
        maximize: Whether the highest is the best.
    """
    low, high, middle = min(values), max(values), statistics.median(values)
    if maximize and high > middle:
        low = max(low, middle - _REACH * (high - middle))
    if not maximize and low < middle:
        high = min(high, middle + _REACH * (middle - low))
    return low, high


def wrapped(name: str, width: int) -> str:
    """Return a dotted name in lines of at most ``width`` characters, broken after dots, else after underscores, else anywhere."""
    lines: list[str] = []
    for part in _joined(re.findall(r"[^.]*\.|[^.]+", name), width):
        for piece in _joined(re.findall(r"[^_ ]*[_ ]|[^_ ]+", part), width):
            lines += [piece[i : i + width] for i in range(0, len(piece), width)]
    return "\n".join(line.strip() for line in lines)


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """Join neighbours while they fit into one line."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return lines
