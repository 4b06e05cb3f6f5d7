"""Figures of a sweep, most of them drawn by Optuna."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter, ScalarFormatter
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization import matplotlib as optuna_plots

from dfs_rl.evaluation.comparison_records import Spread, spread
from dfs_rl.evaluation.curves import CurvePoint, pareto_front
from dfs_rl.evaluation.number_format import number_text, setting_text, spread_text
from dfs_rl.reporting import style
from dfs_rl.reporting.render import Picture, hover_point
from dfs_rl.sweeping.results import RetrainedRecord, SweepRecord, comparable_study, study_of

_WIDTH, _HEIGHT = 8.0, 4.8  # inches
_PANELS = 4  # maximum number of settings side by side in a slice plot
_PANEL = (6.4, 3.6)  # twice the width of a panel, and its height
_COLOURS = [colour for colour, _ in style.METHOD_STYLES]  # colours of the best trials
_LETTERS = 12  # maximum number of characters of a choice
_ABOUT = {
    "Parallel coordinates": "Each line is a trial with a value, the darker the better.",
    "Setting by setting": "A point for each trial, the darker the later. Trials that were stopped "
    "early had less training. A dashed line is the default.",
    "Hyperparameter importance": "Fraction of the variance of the objective that each setting "
    "explains (fANOVA), a rough estimate with few trials.",
    "Learning curves": "The objective on val during the trials; stopped trials end early.",
}


SweepFigure = tuple[str, str, Sequence[Picture]]
"""Title, explanation and pictures of a section of the report."""


def sweep_figures(record: SweepRecord) -> list[SweepFigure]:
    """Draw all figures of a sweep, without those that lack data."""
    plt.switch_backend("Agg")  # Optuna draws with pyplot, which would open windows
    figures = [_pareto_front(record)] if record.points else []
    sections = {
        "Parallel coordinates": _parallel_coordinates,
        "Setting by setting": _slices,
        "Hyperparameter importance": _importances,
        "Learning curves": _learning_curves,
    }
    for title, draw in sections.items():
        if pictures := list(draw(record)):
            figures.append((title, _ABOUT[title], pictures))
    return figures


@contextmanager
def _optuna_style(width: float = _WIDTH, height: float = _HEIGHT) -> Iterator[None]:
    """Set the size of new figures, and restore matplotlib's settings, which Optuna changes."""
    with style.plain_text(), plt.rc_context({"figure.figsize": (width, height)}):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Attempting to set identical low and high")
        try:
            yield
        finally:
            plt.close("all")


def _png() -> bytes:
    """Return the current figure as PNG, cut to its content."""
    buffer = io.BytesIO()
    plt.savefig(buffer, format="png", dpi=style.DPI, bbox_inches="tight")
    return buffer.getvalue()


def _plain_ticks(axis: Axis) -> None:
    """Write numbers on a logarithmic axis without markup, and choices without quotes, shortened."""
    formatter = axis.get_major_formatter()

    def text(value: float, position: int | None) -> str:
        if isinstance(formatter, LogFormatter):
            return f"{value:g}"
        return style.short_middle(formatter(value, position).strip("'"), _LETTERS)

    if not isinstance(formatter, ScalarFormatter):
        axis.set_major_formatter(FuncFormatter(text))
        axis.set_minor_formatter(NullFormatter())


@style.common_style()
def _pareto_front(record: SweepRecord) -> SweepFigure:
    figure, cost = style.new_figure(_WIDTH, _HEIGHT), record.file.cost_model
    axes = figure.add_subplot()
    costs, accuracies = zip(*record.points, strict=True)
    axes.scatter(costs, accuracies, s=16, color=style.FAINT, label="all points")
    costs, accuracies = zip(*pareto_front(record.points), strict=True)
    axes.plot(
        costs, accuracies, ".-", drawstyle="steps-post", color=style.MUTED, label="Pareto front"
    )
    colours = dict(zip(record.best, _COLOURS, strict=False))
    look: dict[str, Any] = {"marker": "o", "ls": "--", "mfc": "none", "ms": 10, "lw": 0.9}
    for name, colour in colours.items():
        costs, accuracies = zip(*sorted(record.trial(name).points), strict=True)
        axes.plot(costs, accuracies, color=colour, label=f"trial {name}", **look)
    tooltips = [
        (*point, f"trial {trial.name}: {point.accuracy:.2f} % at {point.computation:.3g} %")
        for trial in sorted(record.trials, key=lambda trial: trial.name in record.best)
        for point in trial.points
    ]
    has_bars = False
    for again in record.retrained:
        colour, label = colours.get(again.name, style.INK), f"{again.name}, fresh seeds"
        for x, y in over_seeds(again):
            has_bars |= y.deviation is not None
            bars: dict[str, Any] = {"xerr": x.deviation, "yerr": y.deviation}
            axes.errorbar(x.mean, y.mean, **bars, fmt="D", color=colour, mfc="white", label=label)
            text = f"{again.name}, fresh seeds: {spread_text(y)} % at {spread_text(x)} %"
            tooltips.append((x.mean, y.mean, text))
            label = "_"
    axes.set(xscale="log", xlabel=f"{cost} (%, log scale)", ylabel="accuracy on val (%)")
    style.log_ticks(axes)
    axes.legend(fontsize=style.SMALL_SIZE, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    bars_text = "; bars are ± 1 standard deviation over fresh seeds" if has_bars else ""
    text = f"Accuracy against {cost} on val, {len(record.points)} points of all trials."
    text += f" Pareto front: {_ends(pareto_front(record.points))}."
    for name in colours:
        text += f" Trial {name}: {_ends(sorted(record.trial(name).points))}."
    picture = Picture(
        style.to_png(figure), text, [hover_point(axes, *tooltip) for tooltip in tooltips]
    )
    about = f"Every point of every trial on val{bars_text}."
    return f"Accuracy against {cost}", about, [picture]


def _ends(points: Sequence[CurvePoint]) -> str:
    """Return the cheapest and the most expensive of ordered points."""
    ends = points[:1] if len(points) == 1 else [points[0], points[-1]]
    return " to ".join(f"{point.accuracy:.1f} % at {point.computation:.3g} %" for point in ends)


def over_seeds(again: RetrainedRecord) -> list[tuple[Spread, Spread]]:
    """Return computation and accuracy of each operating point over seeds.

    If the seeds have different numbers of points, the points of each seed are returned.
    """
    ordered = [sorted(points) for points in again.points]
    groups = list(zip(*ordered, strict=False))
    if len({len(points) for points in ordered}) > 1:
        groups = [(point,) for points in ordered for point in points]
    return [
        (spread([p.computation for p in points]), spread([p.accuracy for p in points]))
        for points in groups
    ]


def _best_text(record: SweepRecord, name: str, settings: Sequence[str]) -> str:
    """Return value and settings of the best trial, for alternative texts."""
    if not record.best:
        return "No trial has finished."
    best = record.trial(record.best[0])
    pairs = {setting: best.settings.get(setting) for setting in settings}
    listed = ", ".join(f"{setting} {setting_text(value)}" for setting, value in pairs.items())
    value = number_text(best.values[name])
    return f"The best trial, {best.name}, has {name} {value} with {listed}."


def _parallel_coordinates(record: SweepRecord) -> Iterator[Picture]:
    name = next(iter(record.file.objective.modes))
    study, settings = _study(record, name), list(record.file.search)
    if study.trials:
        with _optuna_style(max(_WIDTH, 1.4 * len(settings))):
            axes = optuna_plots.plot_parallel_coordinate(study, settings, target_name=name)
            axes.set_title("")
            for axis in (other.yaxis for other in plt.gcf().axes):
                _plain_ticks(axis)
            text = f"A line over all settings for each of {len(study.trials)} trials. "
            yield Picture(_png(), text + _best_text(record, name, settings))


def _slices(record: SweepRecord) -> Iterator[Picture]:
    settings = list(record.file.search)
    defaults = record.defaults.settings if record.defaults else {}
    for name, label in record.file.objective.labels.items():
        study = _study(record, name)
        for start in range(0, len(settings) if study.trials else 0, _PANELS):
            panels = settings[start : start + _PANELS]
            with _optuna_style(*_PANEL):
                drawn = optuna_plots.plot_slice(study, panels, target_name=label)
                for axes in drawn if isinstance(drawn, np.ndarray) else [drawn]:
                    setting = axes.get_xlabel()
                    default = defaults.get(setting)
                    if isinstance(default, int | float) and not record.file.search[setting].values:
                        axes.axvline(default, color=style.INK, ls="--", lw=0.9)
                    axes.set_title("")
                    axes.tick_params(axis="x", rotation=30)
                    _plain_ticks(axes.xaxis)
                plt.suptitle("")
                text = f"{label} of {len(study.trials)} trials, a panel for each setting. "
                yield Picture(_png(), text + _best_text(record, name, panels))


def _importances(record: SweepRecord) -> Iterator[Picture]:
    if (study := comparable_study(record.trials, record.file)) is not None:
        name = next(iter(record.file.objective.modes))
        evaluator = FanovaImportanceEvaluator(seed=record.file.seed)
        with _optuna_style():
            axes = optuna_plots.plot_param_importances(study, evaluator, target_name=name)
            axes.set_title("", loc="left")
            ranked = sorted(record.importance.items(), key=lambda item: -item[1])
            shares = ", ".join(f"{setting} {100 * share:.0f} %" for setting, share in ranked)
            yield Picture(_png(), f"Importance of the settings for {name}: {shares}.")


def _learning_curves(record: SweepRecord) -> Iterator[Picture]:
    trials = [trial for trial in record.trials if trial.history]
    if not trials:
        return
    study = study_of(trials, [trial.history[-1][1] for trial in trials], record.file, "max")
    with _optuna_style():
        axes = optuna_plots.plot_intermediate_values(study)
        colours = dict(zip(record.best, _COLOURS, strict=False))
        ends = []
        for line, trial in zip(axes.lines, trials, strict=True):
            line.set(color=style.MUTED, alpha=0.4, label="_")
            if colour := colours.get(trial.name):
                line.set(color=colour, lw=2.5, alpha=1, zorder=3, label=f"trial {trial.name}")
                ends.append(f"trial {trial.name} ends at {number_text(trial.history[-1][1])}")
        if colours:
            axes.legend(fontsize=style.SMALL_SIZE)
        name = next(iter(record.file.objective.labels.values()))
        axes.set(title="", xlabel="progress (% of a training)", ylabel=name)
        best = f"; {', '.join(ends)}" if ends else ""
        yield Picture(_png(), f"{name} on val during {len(trials)} trials{best}.")


def _study(record: SweepRecord, name: str) -> optuna.Study:
    """Return the trials with their final values of an objective."""
    trials = [trial for trial in record.trials if name in trial.values]
    values = [trial.values[name] for trial in trials]
    return study_of(trials, values, record.file, record.file.objective.modes[name])
