"""Accuracy against computation of all trials of a sweep, with Pareto front and retrained trials."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfs_rl.evaluation.comparison_records import Spread, spread
from dfs_rl.evaluation.curves import CurvePoint, pareto_front
from dfs_rl.evaluation.number_format import number_text, spread_text
from dfs_rl.reporting import style
from dfs_rl.reporting.hover import HoverPoint, hover_point
from dfs_rl.sweeping.records import DEFAULTS, RetrainedRecord, SweepRecord, TrialRecord
from dfs_rl.sweeping.report.style import (
    STATUS_STYLES,
    TrialStyle,
    best_last,
    best_trial_styles,
    legend_below,
    value_label,
    value_range,
)
from dfs_rl.sweeping.summary import STATUSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

_SIZE = (8.0, 5.4)
_MARGINS = {"left": 0.085, "right": 0.93, "bottom": 0.2, "top": 0.92}
_BELOW = 6.0
"""Points this far below every best trial are omitted, because they would flatten the others."""
_DEFAULTS_STYLE = TrialStyle(style.INK, "o", DEFAULTS)
_OTHER_STYLE = TrialStyle(style.MUTED, "D", "other trials")


@style.plain_text()
def sweep_pareto_plot(record: SweepRecord) -> "Figure":
    """Draw all points over a logarithmic axis, their Pareto front, and the retrained trials.

    Retrained trials are shown as means and standard deviations over fresh seeds.

    Args:
        record: A sweep with at least one point.
    """
    figure = style.new_figure(*_SIZE)
    figure.subplots_adjust(**_MARGINS)
    axes = style.pareto_axes(figure, accuracy="accuracy on val, %")
    trial_styles = best_trial_styles(record)
    _set_limits(axes, record)
    _draw_envelope(axes, record)
    _draw_cloud(axes, record)
    for name in reversed(record.best):
        _draw_best(axes, record.trial(name), trial_styles[name])
    for again in reversed(record.retrained):
        other = _DEFAULTS_STYLE if again.name == DEFAULTS else _OTHER_STYLE
        label = None if again.name in trial_styles else f"{other.name}, fresh seeds"
        _draw_retrained(axes, again, trial_styles.get(again.name, other), label)
    hidden = sum(point.accuracy < axes.get_ylim()[0] for point in record.points)
    style.title(axes, _title(record, hidden))
    legend_below(figure, axes)
    return figure


def sweep_hover_points(figure: "Figure", record: SweepRecord) -> list[HoverPoint]:
    """Return the hover texts of ``sweep_pareto_plot``, the best and the retrained trials last."""
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    told: list[tuple[CurvePoint, str]] = []
    for trial in best_last(record):
        values = "".join(f", {name} {number_text(value)}" for name, value in trial.values.items())
        about = f"trial {trial.name}, {STATUSES[trial.status]}{values}"
        told += [
            (p, f"{about}: {p.accuracy:.2f} % right at {p.computation:.3g} %") for p in trial.points
        ]
    for again in record.retrained:
        for computation, accuracy in _over_seeds(again):
            text = f"{again.name} on fresh seeds: {spread_text(accuracy)} % right at {spread_text(computation)} %"
            told.append((CurvePoint(computation.mean, accuracy.mean), text))
    return [
        hover_point(axes, point.computation, point.accuracy, text)
        for point, text in told
        if low <= point.accuracy <= high
    ]


def _title(record: SweepRecord, hidden: int) -> str:
    shown = len(record.points) - hidden
    below = f", {hidden} more far below" if hidden else ""
    retrained = "; hollow: on fresh seeds, bars ± 1 standard deviation" if record.retrained else ""
    return f"{shown} {'point' if shown == 1 else 'points'} of all trials{below}{retrained}"


def _set_limits(axes: "Axes", record: SweepRecord) -> None:
    """Set the limits of the axes around the best and the retrained trials."""
    retrained = [
        CurvePoint(
            cost.mean + side * (cost.deviation or 0), right.mean + side * (right.deviation or 0)
        )
        for again in record.retrained
        for cost, right in _over_seeds(again)
        for side in (-1, 1)
    ]
    points = [*record.points, *(end for end in retrained if end.computation > 0)]
    best = [point for name in record.best for point in record.trial(name).points]
    low = min(point.accuracy for point in points)
    high = max(point.accuracy for point in points)
    low = max(low, min(p.accuracy for p in (*retrained, *best)) - _BELOW) if best else low
    room = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - room, high + 1.5 * room)
    costs = [point.computation for point in points if point.accuracy >= low]
    axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
    style.log_ticks(axes)


def _draw_envelope(axes: "Axes", record: SweepRecord) -> None:
    """Draw the Pareto front as a step line and shade the area below it."""
    front = pareto_front(record.points)
    right = axes.get_xlim()[1]
    costs = [*(step.computation for step in front), right]
    heights = [*(step.accuracy for step in front), front[-1].accuracy]
    axes.fill_between(
        costs, heights, axes.get_ylim()[0], step="post", color=style.INK, alpha=0.05, lw=0, zorder=0
    )
    axes.plot(
        costs,
        heights,
        drawstyle="steps-post",
        color=style.MUTED,
        lw=1.1,
        label="envelope of all trials",
        zorder=3,
    )


def _draw_cloud(axes: "Axes", record: SweepRecord) -> None:
    """Draw the points of all trials, coloured by objective.

    With two objectives, or with equal values, the colours show the status.
    """
    (name, *more) = record.objective.names
    valued = [trial for trial in record.trials if name in trial.values and trial.points]
    values = [trial.values[name] for trial in valued]
    if more or len(set(values)) <= 1:
        for status, trial_style in STATUS_STYLES.items():
            trials = [trial for trial in record.trials if trial.status == status]
            _dots(axes, trials, color=trial_style.colour, alpha=0.55, label=trial_style.name)
        return
    others = [trial for trial in record.trials if name not in trial.values]
    _dots(axes, others, color=style.MUTED, alpha=0.5, label="without a value")
    maximize = record.objective.maximize[0]
    low, high = value_range(values, maximize=maximize)
    drawn = _dots(
        axes,
        valued,
        c=[trial.values[name] for trial in valued for _ in trial.points],
        cmap=style.value_colours(maximize=maximize),
        vmin=low,
        vmax=high,
    )
    assert drawn is not None, "they have points"
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02, fraction=0.04, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(value_label(record, name), fontsize=style.SMALL_SIZE, color=style.INK)
    bar.ax.tick_params(labelsize=style.SMALL_SIZE, color=style.MUTED, labelcolor=style.INK)


def _dots(
    axes: "Axes",
    trials: Sequence[TrialRecord],
    **trial_style: Any,  # noqa: ANN401 - as matplotlib's
) -> "PathCollection | None":
    """Draw the points of some trials, if there are any."""
    points = [point for trial in trials for point in trial.points]
    if not points:
        return None
    costs = [point.computation for point in points]
    return axes.scatter(
        costs, [point.accuracy for point in points], s=16, lw=0, zorder=2, **trial_style
    )


def _draw_best(axes: "Axes", trial: TrialRecord, trial_style: TrialStyle) -> None:
    if not trial.points:
        return
    costs, accuracies = zip(*sorted(trial.points), strict=True)
    axes.plot(
        costs,
        accuracies,
        color=trial_style.colour,
        marker=trial_style.marker,
        markersize=8 if trial_style.marker == "*" else 6,
        markeredgecolor="white",
        markeredgewidth=0.5,
        lw=0.9,
        ls=(0, (4, 3)),
        label=trial_style.name,
        zorder=5,
    )


def _draw_retrained(
    axes: "Axes", again: RetrainedRecord, trial_style: TrialStyle, label: str | None
) -> None:
    """Draw the means over fresh seeds as hollow markers, with their deviations."""
    for computation, accuracy in _over_seeds(again):
        axes.errorbar(
            computation.mean,
            accuracy.mean,
            xerr=computation.deviation,
            yerr=accuracy.deviation,
            marker=trial_style.marker,
            markersize=9 if trial_style.marker == "*" else 6,
            color=trial_style.colour,
            markerfacecolor="white",
            markeredgewidth=1.1,
            elinewidth=0.9,
            linestyle="none",
            label=label,
            zorder=6,
        )


def _over_seeds(again: RetrainedRecord) -> list[tuple[Spread, Spread]]:
    """Return computation and accuracy of each operating point over seeds.

    If the seeds have different numbers of points, the points of each seed are returned.
    """
    ordered = [sorted(points) for points in again.points]
    if len({len(points) for points in ordered}) > 1:
        return [
            (spread([p.computation]), spread([p.accuracy])) for points in ordered for p in points
        ]
    return [_mean(points) for points in zip(*ordered, strict=True)]


def _mean(points: Sequence[CurvePoint]) -> tuple[Spread, Spread]:
    return spread([p.computation for p in points]), spread([p.accuracy for p in points])
