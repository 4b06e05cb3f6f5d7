"""Parallel-coordinates plot of all trials of a sweep (Inselberg, 1985)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord, TrialRecord
from dfs_rl.sweeping.report.axes import SettingAxis, number_axis, setting_axis
from dfs_rl.sweeping.report.style import (
    best_last,
    best_trial_styles,
    legend_below,
    value_label,
    value_range,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_INNER_HEIGHT, _LINE, _BOTTOM, _LEFT, _RIGHT = 3.3, 0.14, 0.5, 0.55, 0.85
_SPACING, _CLOSEST, _NARROWEST, _WIDEST = 1.05, 0.86, 4.6, 8.0
_LETTERS = 12
"""Number of characters of a small font that fit between two axes."""
_LANE = -0.1
"""Coordinate below the axis for lines without a value."""
_FEW, _FAINTEST = 20, 0.25
"""Number of trials up to which lines are opaque, and lowest opacity with many trials."""
_BUNDLE = 0.05
"""Spread to either side of lines through the same choice, ordered by the objective."""


class _Column(NamedTuple):
    """One axis, with each trial's coordinate on it; NaN without a value."""

    axis: SettingAxis
    places: NDArray[np.float64]  # [trials]


@style.plain_text()
def parallel_plot(record: SweepRecord) -> "Figure":
    """Draw every trial as a line through its settings and values, the best trials on top.

    The line of a trial without a value ends below the axis.

    Args:
        record: A sweep with at least one trial and one setting.
    """
    ordered = _worst_first(record)
    columns = _columns(record, ordered)
    gaps = max(len(columns) - 1, 1)
    inner = max(_NARROWEST, min(_SPACING * gaps, _WIDEST), _CLOSEST * gaps)
    titles = [wrapped(column.axis.name, _LETTERS) for column in columns]
    top = 0.2 + _LINE * max(title.count("\n") + 1 for title in titles)
    width, height = _LEFT + inner + _RIGHT, top + _INNER_HEIGHT + _BOTTOM
    figure = style.new_figure(width, height)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, inner / width, _INNER_HEIGHT / height))
    axes.set_axis_off()
    axes.set_xlim(0, gaps)
    axes.set_ylim(_LANE, 1 + _BUNDLE)
    _draw_lines(axes, record, ordered, columns)
    for x, (column, title) in enumerate(zip(columns, titles, strict=True)):
        _draw_axis(axes, x, column, title)
    legend_below(figure, axes)
    return figure


def _worst_first(record: SweepRecord) -> list[TrialRecord]:
    """Return the trials in drawing order: without a value, worst to best, the best trials."""
    name, sign = record.objective.names[0], 1 if record.objective.maximize[0] else -1

    def rank(trial: TrialRecord) -> tuple[bool, bool, float]:
        has = name in trial.values
        return trial.name in record.best, has, sign * trial.values[name] if has else 0.0

    return sorted(best_last(record), key=rank)


def _columns(record: SweepRecord, trials: Sequence[TrialRecord]) -> list[_Column]:
    columns = []
    for name in record.scales:
        axis = setting_axis(record, name)
        places = _places(
            [axis.place(t.settings[name]) if name in t.settings else None for t in trials]
        )
        if axis.choices:
            places = _spread(places)
        columns.append(_Column(axis, places))
    for name, maximize in zip(record.objective.names, record.objective.maximize, strict=True):
        values = [trial.values[name] for trial in trials if name in trial.values]
        if values:
            low, high = value_range(values, maximize=maximize)
            best = "" if maximize else " (low is best)"
            axis = number_axis(value_label(record, name) + best, [low, high])
            shown = [
                min(max(t.values[name], low), high) if name in t.values else None for t in trials
            ]
            places = _places([None if value is None else axis.place(value) for value in shown])
            columns.append(_Column(axis, np.where(np.isnan(places), _LANE, places)))
    return columns


def _places(places: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if place is None else place for place in places])


def _spread(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread lines through the same choice, in the order of the trials."""
    spread = places.copy()
    kinds = np.unique(places[~np.isnan(places)])
    reach = min(_BUNDLE, 0.3 / max(len(kinds) - 1, 1))
    for kind in kinds:
        (same,) = np.nonzero(places == kind)
        if len(same) > 1:
            spread[same] = kind + np.linspace(-reach, reach, len(same))
    return spread


def _draw_lines(
    axes: "Axes", record: SweepRecord, trials: Sequence[TrialRecord], columns: Sequence[_Column]
) -> None:
    name, maximize = record.objective.names[0], record.objective.maximize[0]
    values = [trial.values[name] for trial in trials if name in trial.values]
    low, high = value_range(values, maximize=maximize) if values else (0.0, 0.0)
    colours = style.value_colours(maximize=maximize)
    trial_styles = best_trial_styles(record)
    alpha = _FAINTEST + (1 - _FAINTEST) / max(1.0, len(trials) / _FEW)
    for i, trial in enumerate(trials):
        heights = [column.places[i] for column in columns]
        if trial.name in trial_styles:
            colour, _, label = trial_styles[trial.name]
            axes.plot(
                heights, color=colour, lw=2.0, marker=".", label=label, zorder=4, clip_on=False
            )
        elif name in trial.values:
            share = (trial.values[name] - low) / (high - low) if high > low else 1.0
            label = "other trials, the darker the better"
            axes.plot(
                heights,
                color=colours(share),
                lw=0.9,
                alpha=alpha,
                label=label,
                zorder=3,
                clip_on=False,
            )
        else:
            axes.plot(
                heights,
                color=style.MUTED,
                lw=0.9,
                ls=(0, (1, 2)),
                label="without a value",
                zorder=2,
                clip_on=False,
            )


def _draw_axis(axes: "Axes", x: int, column: _Column, title: str) -> None:
    axes.plot([x, x], [0, 1], color=style.INK, lw=0.9, zorder=5, clip_on=False)
    for place, text in column.axis.ticks():
        axes.plot(x, place, marker="_", color=style.INK, markersize=5, zorder=5, clip_on=False)
        _write(axes, style.short_middle(text, _LETTERS), (x, place), style.INK)
    if (column.places == _LANE).any():
        _write(axes, "none", (x, _LANE), style.MUTED)
    axes.annotate(
        title,
        (x, 1 + _BUNDLE),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=style.SMALL_SIZE - 0.5,
        color=style.INK,
        annotation_clip=False,
    )


def _write(axes: "Axes", text: str, at: tuple[float, float], colour: str) -> None:
    """Write text to the right of a point on an axis, above the lines."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        at,
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=style.SMALL_SIZE - 1,
        color=colour,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        annotation_clip=False,
        zorder=7,
    )
