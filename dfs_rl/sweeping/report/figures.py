"""All figures of a sweep report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dfs_rl.reporting import style
from dfs_rl.reporting.hover import HoverPoint
from dfs_rl.sweeping.records import SweepRecord
from dfs_rl.sweeping.report.importance import importance_plot
from dfs_rl.sweeping.report.learning_curves import progress_plot
from dfs_rl.sweeping.report.parallel_coordinates import parallel_plot
from dfs_rl.sweeping.report.pareto_plot import sweep_hover_points, sweep_pareto_plot
from dfs_rl.sweeping.report.slices import settings_plot


class SweepFigures(NamedTuple):
    """Figures of a sweep as PNG; None without data.

    Attributes:
        pareto_front: Accuracy against computation of all trials.
        points: Hover texts of its points.
        parallel: Parallel coordinates of settings and objective values of all trials.
        settings: Each setting against a value of the objective, by the value's name.
        progress: First objective over the trials' progress.
        importance: Fraction of its variance that each setting explains.
    """

    pareto_front: bytes | None
    points: Sequence[HoverPoint]
    parallel: bytes | None
    settings: Mapping[str, bytes]
    progress: bytes | None
    importance: bytes | None


def sweep_figures(record: SweepRecord) -> SweepFigures:
    """Draw all figures of a sweep."""
    pareto_front = sweep_pareto_plot(record) if record.points else None
    drawn = bool(record.trials and record.scales)
    valued = {name for trial in record.trials for name in trial.values}
    return SweepFigures(
        pareto_front=None if pareto_front is None else style.to_png(pareto_front),
        points=[] if pareto_front is None else sweep_hover_points(pareto_front, record),
        parallel=style.to_png(parallel_plot(record)) if drawn else None,
        settings={
            name: style.to_png(settings_plot(record, name))
            for name in record.objective.names
            if drawn and name in valued
        },
        progress=style.to_png(progress_plot(record))
        if any(t.history for t in record.trials)
        else None,
        importance=style.to_png(importance_plot(record)) if record.importance else None,
    )
