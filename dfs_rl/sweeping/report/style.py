"""Common style of the figures of a sweep: trial colours, labels, legends and ranges."""

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
"""Maximum distance of the worst drawn value from the median, relative to that of the best value."""
_LONGEST_NAME = 9
_LEGEND_COLUMNS = 4


class TrialStyle(NamedTuple):
    """Style of a trial in figures.

    Attributes:
        colour: Colour of lines and markers.
        marker: Marker symbol.
        name: Name in the legend.
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
"""Styles of trials that are not among the best, by status."""


def best_trial_styles(record: SweepRecord) -> dict[str, TrialStyle]:
    """Return the styles of the best trials by name.

    Each has its own colour, or all share one if there are more trials than colours.
    """
    if len(record.best) > len(style.GATE_COLOURS):
        return {name: TrialStyle(style.VERMILION, "*", "best trials") for name in record.best}
    trial_styles = zip(record.best, style.GATE_COLOURS, style.GATE_MARKERS, strict=False)
    return {
        name: TrialStyle(colour, marker, f"trial {style.short_middle(name, _LONGEST_NAME)}")
        for name, colour, marker in trial_styles
    }


def best_last(record: SweepRecord) -> list[TrialRecord]:
    """Return the trials in drawing order, the best one last and thus on top."""
    others = [trial for trial in record.trials if trial.name not in record.best]
    return [*others, *(record.trial(name) for name in reversed(record.best))]


def legend_below(figure: "Figure", *all_axes: "Axes") -> None:
    """Add a legend without duplicates below the axes, the last drawn entry first."""
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
    """Return the axis label of one of the objective's values."""
    unit = record.objective.units[record.objective.names.index(name)]
    return f"{name}, {unit}" if unit else name


def value_range(values: Sequence[float], *, maximize: bool) -> tuple[float, float]:
    """Return the ends of an axis for values of an objective, without extremely bad values.

    Args:
        values: At least one value.
        maximize: Whether the highest value is the best.
    """
    low, high, middle = min(values), max(values), statistics.median(values)
    if maximize and high > middle:
        low = max(low, middle - _REACH * (high - middle))
    if not maximize and low < middle:
        high = min(high, middle + _REACH * (middle - low))
    return low, high


def wrapped(name: str, width: int) -> str:
    """Break a dotted name into lines of at most ``width`` characters.

    Lines are broken after dots, else after underscores, else anywhere.
    """
    lines: list[str] = []
    for part in _joined(re.findall(r"[^.]*\.|[^.]+", name), width):
        for piece in _joined(re.findall(r"[^_ ]*[_ ]|[^_ ]+", part), width):
            lines += [piece[i : i + width] for i in range(0, len(piece), width)]
    return "\n".join(line.strip() for line in lines)


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """Join adjacent parts that fit into one line."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return lines
