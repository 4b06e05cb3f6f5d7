"""Slice plot: each setting of a sweep against the objective."""

import math
from typing import TYPE_CHECKING

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import DEFAULTS, SweepRecord
from dfs_rl.sweeping.report.axes import SettingAxis, setting_axis
from dfs_rl.sweeping.report.style import (
    STATUS_STYLES,
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
_WIDTH, _PANEL_HEIGHT = 8.6, 1.9
_LEFT, _RIGHT, _TOP, _TICKS_BELOW, _BOTTOM, _GAP = 0.65, 0.15, 0.15, 0.65, 0.5, 0.2
_LINE = 0.15
_COLUMNS = 4
_LETTERS = 26
_CHOICE_LETTERS = 12
_FEW_CHOICES, _SLANT, _STEEP = 4, 25, 55
"""Number of choices with slightly slanted long names, and both angles in degrees."""
_TICKS = 3
_ROOM = 0.08
"""Margin at both ends of an axis, as a fraction of its length."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_SPREAD = 0.3
"""Spread of the trials of one choice, as a fraction of the distance to the next choice."""


@style.plain_text()
def settings_plot(record: SweepRecord, objective: str) -> "Figure":
    """Draw one panel per setting: each trial's objective value, and the default setting.

    Args:
        record: A sweep with at least one trial that has a value and a setting.
        objective: Name of the value.
    """
    titles = [wrapped(name, _LETTERS) for name in record.scales]
    above = 0.15 + _LINE * max(title.count("\n") + 1 for title in titles)
    columns = min(len(titles), _COLUMNS)
    rows = -(-len(titles) // columns)
    panel = (_WIDTH - _LEFT - _RIGHT - (columns - 1) * _GAP) / columns
    height = _TOP + rows * (above + _PANEL_HEIGHT + _TICKS_BELOW) + _BOTTOM
    figure = style.new_figure(_WIDTH, height)
    for i, (name, title) in enumerate(zip(record.scales, titles, strict=True)):
        row, column = divmod(i, columns)
        left = _LEFT + column * (panel + _GAP)
        bottom = height - _TOP - (row + 1) * (above + _PANEL_HEIGHT) - row * _TICKS_BELOW
        axes = figure.add_axes(
            (left / _WIDTH, bottom / height, panel / _WIDTH, _PANEL_HEIGHT / height)
        )
        _panel(axes, record, name, objective)
        axes.set_title(title, fontsize=style.SMALL_SIZE, loc="left", pad=7)
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(value_label(record, objective))
    legend_below(figure, *figure.axes)
    return figure


def _panel(axes: "Axes", record: SweepRecord, name: str, objective: str) -> None:
    defaults = [
        a.settings[name] for a in record.retrained if a.name == DEFAULTS and name in a.settings
    ]
    axis = setting_axis(record, name, also=defaults)
    maximize = record.objective.maximize[record.objective.names.index(objective)]
    low, high = _limits(axes, record, objective, maximize=maximize)
    for value in defaults:
        at = axis.place(value)
        if at is not None:
            axes.axvline(at, color=style.INK, lw=0.9, ls=(0, (4, 3)), label=DEFAULTS, zorder=1)
    trial_styles = best_trial_styles(record)
    for i, trial in enumerate(best_last(record)):
        place = axis.place(trial.settings[name]) if name in trial.settings else None
        if place is None:
            continue
        trial_style = trial_styles.get(trial.name) or STATUS_STYLES[trial.status]
        value = trial.values.get(objective)
        best = trial.name in trial_styles
        marker, label = trial_style.marker, trial_style.name
        if value is None:
            marker, label = "x", "without a value, at the edge"
        elif not low <= value <= high:
            marker, label = ("v" if maximize else "^"), "far worse, at the edge"
        worst = axes.get_ylim()[0 if maximize else 1]
        axes.plot(
            place + _sideways(axis, i),
            worst if value is None else min(max(value, low), high),
            color=trial_style.colour,
            marker=marker,
            markersize=(9 if marker == "*" else 6) if best else 4,
            markeredgecolor="white" if marker != "x" else None,
            markeredgewidth=0.4 if marker != "x" else 0.9,
            ls="none",
            label=label,
            alpha=1.0 if best else 0.75,
            zorder=4 if best else 3,
            clip_on=False,
        )
    _finish(axes, axis)


def _limits(
    axes: "Axes", record: SweepRecord, objective: str, *, maximize: bool
) -> tuple[float, float]:
    """Set and return the range of the values that are drawn to scale."""
    values = [trial.values[objective] for trial in record.trials if objective in trial.values]
    low, high = value_range(values, maximize=maximize)
    room = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    return low, high


def _sideways(axis: SettingAxis, i: int) -> float:
    """Return a deterministic, evenly spread offset for a trial of one choice."""
    reach = _SPREAD / max(len(axis.choices) - 1, 1) if axis.choices else 0.0
    return reach * (2 * (i * _GOLDEN % 1) - 1)


def _finish(axes: "Axes", axis: SettingAxis) -> None:
    ticks = axis.ticks(_TICKS)
    texts = [style.short_middle(text, _CHOICE_LETTERS) for _, text in ticks]
    room = max(_ROOM, _SPREAD / max(len(axis.choices) - 1, 1) + _ROOM) if axis.choices else _ROOM
    axes.set_xlim(-room, 1 + room)
    slanted = len("  ".join(texts)) > _LETTERS
    axes.set_xticks([place for place, _ in ticks], texts)
    style.tidy(axes)
    axes.tick_params(labelsize=style.SMALL_SIZE - 1)
    if slanted:
        slant = _SLANT if len(texts) <= _FEW_CHOICES else _STEEP
        for label in axes.get_xticklabels():
            label.set(rotation=slant, ha="right", rotation_mode="anchor")
    axes.grid(visible=True, axis="y", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
