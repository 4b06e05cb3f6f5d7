"""Learning curves of a sweep's trials."""

from typing import TYPE_CHECKING

from dfs_rl.reporting import style
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.style import (
    STATUS_STYLES,
    best_last,
    best_trial_styles,
    legend_below,
    value_label,
    value_range,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (8.0, 4.2)


@style.plain_text()
def progress_plot(record: SweepRecord) -> "Figure":
    """Draw the first objective of every trial over its progress, the best trials on top.

    Curves of stopped trials end early.

    Args:
        record: A sweep with at least one trial that was evaluated during training.
    """
    figure = style.new_figure(*_SIZE)
    figure.subplots_adjust(left=0.09, right=0.975, bottom=0.24, top=0.9)
    axes = figure.add_subplot()
    axes.grid(visible=True, which="major", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    style.tidy(axes)
    trial_styles = best_trial_styles(record)
    for trial in best_last(record):
        if not trial.history:
            continue
        progress, values = zip(*trial.history, strict=True)
        shares = [100 * share for share in progress]
        colour, marker, name = STATUS_STYLES[trial.status]
        if trial.name in trial_styles:
            colour, _, name = trial_styles[trial.name]
            axes.plot(shares, values, color=colour, lw=2.0, label=name, zorder=4)
        else:
            axes.plot(shares, values, color=colour, lw=0.8, alpha=0.45, zorder=2)
            axes.plot(
                shares[-1],
                values[-1],
                color=colour,
                marker=marker,
                markersize=5 if marker == "x" else 3,
                ls="none",
                label=name,
                zorder=3,
            )
    cut = ", far worse values cut off" if _set_limits(axes, record) else ""
    axes.set_xlabel("progress, % of a whole training")
    axes.set_ylabel(value_label(record, record.objective.names[0]))
    style.title(axes, f"{record.objective.names[0]} on val while the trials trained{cut}")
    legend_below(figure, axes)
    return figure


def _set_limits(axes: "Axes", record: SweepRecord) -> bool:
    """Set the limits of the axes, without extreme values; return whether any are cut off.

    The limits follow the first and last values of all trials.
    """
    histories = [trial.history for trial in record.trials if trial.history]
    ends = [history[i][1] for history in histories for i in (0, -1)]
    values = [value for history in histories for _, value in history]
    low, high = value_range(ends, maximize=record.objective.maximize[0])
    if record.objective.maximize[0]:
        high = max(values)
    else:
        low = min(values)
    room = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, 102)
    return min(values) < low - room or max(values) > high + room
