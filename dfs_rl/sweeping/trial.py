"""One trial of a sweep in a worker process: the command's training in its own run folder.

There is no second training loop. Tune checkpoints the run folder, so a trial resumes, or is copied
by population-based training, as a run resumes with ``--resume``.
"""

import json
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from dfs_rl.data import Dataset
from dfs_rl.errors import DfsRlError
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping import commands
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.utils.device import set_threads
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.trusted_import import trusting

# Keys of a trial's reports and of its settings for Tune.
PROGRESS = "progress"  # in percent of a training; schedulers use it as time
FULL_PROGRESS = 100
FAILED = "failed"  # reason of a failure
TRACEBACK = "traceback"  # of an unexpected error
POINTS = "points"  # computation and accuracy on val of each seed, as JSON
CANDIDATE = "candidate"
SEED = "seed"
_VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Common data of all trials.

    The search trains each trial on all seeds. Afterwards there are candidates, and a trial for each
    pair of candidate and seed.
    """

    file: SweepFile
    reference_point: CurvePoint
    seeds: tuple[int, ...]
    candidates: tuple[Mapping[str, object], ...] = ()  # searched settings
    trusted: frozenset[str] = frozenset()  # constructors that may be imported, see ``trusting``


def run_trial(config: dict[str, Any], *, plan: TrialPlan, shared: Dataset) -> None:
    """Train every seed and report to Tune; errors are reported too, and not retried.

    ``config`` has settings from the searcher, or the number of a candidate and a fresh seed.
    """
    values: Mapping[str, object]
    seeds: tuple[int, ...]
    if plan.candidates:
        values, seeds = plan.candidates[config[CANDIDATE]], (config[SEED],)
    else:
        values, seeds = plan.file.decoded(config), plan.seeds
    folder = new_folder(Path(tune.get_context().get_trial_dir()))
    if (checkpoint := tune.get_checkpoint()) is not None:
        checkpoint.to_directory(str(folder))
    reporter = _TrialReporter(plan, folder, len(seeds))
    try:
        with trusting(plan.trusted):
            for seed in seeds:
                settings = plan.file.config(values, seed=seed, run_dir=str(folder / run_name(seed)))
                set_threads(settings.threads)
                settings = commands.budgets_in_percent(settings, settings, shared)
                run = resume_if_started(settings) or commands.create(settings, shared)
                with run.lock():
                    watched = replace(run, after_save=partial(reporter.report_progress, run))
                    commands.train(settings, shared, watched)
                reporter.add(run, commands.points_on_val(run))
    except Exception as error:  # noqa: BLE001 - the other trials continue after any error
        reporter.fail(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints are already in Tune's storage


def new_folder(trial_dir: Path) -> Path:
    """Create the temporary folder of a trial's runs, and remove those of its killed workers.

    It is beside the folder of all trials: Tune stores whatever a trial's own folder contains.
    """
    place = trial_dir.parents[1] / "runs" / trial_dir.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    # A name of its own: the worker of a killed driver may end, and clean up, later than this.
    return Path(tempfile.mkdtemp(dir=place))


def run_name(seed: int) -> str:
    """Return the folder name of a training."""
    return f"seed{seed}"


def resume_if_started(config: commands.Config) -> RunFolder | None:
    """Open a training that has started, or return None.

    If its settings differ, as in a copy of another trial, they are replaced, and the validation
    state is discarded, because under another reward another gate may be the best.
    """
    path = config.run_dir
    if not (path / RECORD).is_file():
        return None
    run, resolved = RunFolder.open(path), config.with_resolved_defaults()
    if replace(run.config(type(config)), run_dir=path) != resolved:
        run.replace_config(resolved)
        if run.has_checkpoint(LAST_CHECKPOINT):
            tensors, state = run.load_checkpoint(LAST_CHECKPOINT)
            if _VALIDATION in state:
                run.save_checkpoint(LAST_CHECKPOINT, tensors, {**state, _VALIDATION: None})
    return run


class _TrialReporter:
    """Reports the logged metrics of a trial's runs to Tune."""

    def __init__(self, plan: TrialPlan, folder: Path, n_seeds: int) -> None:
        self._objective = plan.file.objective
        self._reference_point = plan.reference_point
        self._folder = folder
        self._n_seeds = n_seeds
        self._done: list[dict[str, float]] = []
        self._points: list[tuple[CurvePoint, ...]] = []
        self._progress = 0.0

    def report_progress(self, run: RunFolder) -> None:
        """Report the metrics of an unfinished run with a new validation."""
        if not (seen := validations(run)):
            return
        progress, _ = seen[-1]
        overall = FULL_PROGRESS * (len(self._done) + progress) / self._n_seeds
        if progress < 1.0 and overall > self._progress:
            self._report(overall, [*self._done, self._value(run)])

    def add(self, run: RunFolder, points_on_val: tuple[CurvePoint, ...]) -> None:
        self._done.append(self._value(run))
        self._points.append(points_on_val)
        self._report(FULL_PROGRESS * len(self._done) / self._n_seeds, self._done)

    def fail(self, error: Exception) -> None:
        known = isinstance(error, DfsRlError)
        name = "" if known else f"{type(error).__name__}: "
        tune.report(
            {
                PROGRESS: self._progress,
                **self._objective.failure_values,
                FAILED: name + " ".join(str(error).split()),
                POINTS: "[]",
                TRACEBACK: "" if known else "".join(traceback.format_exception(error)),
            }
        )

    def _value(self, run: RunFolder) -> dict[str, float]:
        """Return a run's objective, without the validation of the untrained gate."""
        learned = [points for progress, points in validations(run) if progress > 0]
        last = learned[-self._objective.last :]
        return self._objective.mean(
            [self._objective.values(points, self._reference_point) for points in last]
        )

    def _report(self, progress: float, of_seeds: list[dict[str, float]]) -> None:
        self._progress = progress
        tune.report(
            {
                PROGRESS: progress,
                **self._objective.mean(of_seeds),
                FAILED: "",
                POINTS: json.dumps(self._points),
                TRACEBACK: "",
            },
            checkpoint=tune.Checkpoint.from_directory(str(self._folder)),
        )


def validations(run: RunFolder) -> list[tuple[float, list[CurvePoint]]]:
    """Return progress, in [0, 1], and points of each validation of a run."""
    logged: list[dict[str, Any]] = run.read_metrics()
    return [
        (record["progress"], [CurvePoint(*point) for point in record["points"]])
        for record in logged
        if "points" in record
    ]
