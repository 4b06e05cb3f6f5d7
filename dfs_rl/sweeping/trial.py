"""One trial of a sweep in a worker process: the command's training in its own run folder.

There is no second training loop. Tune checkpoints the run folder, so a trial resumes, or is copied
by population-based training, as a run resumes with ``--resume``.
"""

import json
import shutil
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
from dfs_rl.sweeping.commands import SweepCommand, command_of
from dfs_rl.sweeping.space import decode_value
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.utils.device import resolve_device, set_threads
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.trusted_import import trusting

PROGRESS = "progress"
"""Key of the progress in percent of a training, which schedulers use as time."""
FULL_PROGRESS = 100
"""Progress at the end, in percent."""
FAILED = "failed"
"""Key of the reason of a failure."""
TRACEBACK = "traceback"
"""Key of the traceback of an unexpected error."""
POINTS = "points"
"""Key of the computation and accuracy on val of each seed, as JSON."""
CANDIDATE = "candidate"
SEED = "seed"
_VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Common data of all trials.

    Attributes:
        file: The sweep.
        reference_point: Bound of the hypervolume.
        seeds: Seeds of each trial's trainings.
        candidates: Searched settings to retrain on fresh seeds.
        trusted: Constructors that trials may import, as in ``trusting``.
    """

    file: SweepFile
    reference_point: CurvePoint
    seeds: tuple[int, ...]
    candidates: tuple[Mapping[str, object], ...] = ()
    trusted: frozenset[str] = frozenset()


def search_trial(config: dict[str, Any], *, plan: TrialPlan, shared: Dataset) -> None:
    """Train with the settings that the searcher proposes; called by Tune."""
    values = {
        name: decode_value(value) if plan.file.search[name].values else value
        for name, value in config.items()
    }
    with trusting(plan.trusted):
        _run(values, plan.seeds, plan, shared)


def retrain_trial(config: dict[str, Any], *, plan: TrialPlan, shared: Dataset) -> None:
    """Train a candidate on a fresh seed; called by Tune."""
    with trusting(plan.trusted):
        _run(plan.candidates[config[CANDIDATE]], (config[SEED],), plan, shared)


def run_name(seed: int) -> str:
    """Return the folder name of a training."""
    return f"seed{seed}"


def _run(
    values: Mapping[str, object], seeds: tuple[int, ...], plan: TrialPlan, shared: Dataset
) -> None:
    """Train every seed and report; errors are reported too, and not retried."""
    folder = _fresh_folder()
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        checkpoint.to_directory(str(folder))
    reporter = _TrialReporter(plan, folder, len(seeds))
    command = command_of(plan.file.command)
    try:
        for seed in seeds:
            config = plan.file.config(values, seed=seed, run_dir=str(folder / run_name(seed)))
            set_threads(config.threads)
            device = str(resolve_device(config.device))
            run = resume_if_started(command, config) or command.create(config, shared, device)
            with run.lock():
                watched = replace(run, after_save=partial(reporter.report_progress, run))
                command.train(config, shared, watched, device)
            reporter.add(run, command.points_on_val(run))
        reporter.finish()
    except Exception as error:  # noqa: BLE001 - the other trials continue after any error
        reporter.fail(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints are already in Tune's storage


def _fresh_folder() -> Path:
    """Return an empty local folder, without remains of a killed worker."""
    folder = Path(tune.get_context().get_trial_dir()) / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def resume_if_started(command: SweepCommand, config: Any) -> RunFolder | None:  # noqa: ANN401
    """Open a training that has started, or return None.

    If its settings differ, as in a copy of another trial, they are replaced.
    """
    path = config.run_dir
    if not (path / RECORD).is_file():
        return None
    run, resolved = RunFolder.open(path), command.with_resolved_defaults(config)
    if replace(run.config(command.config_type), run_dir=path) != resolved:
        run.replace_config(resolved)
        _reset_best_gate(run)
    return run


def _reset_best_gate(run: RunFolder) -> None:
    """Discard the validation state, because under another reward another gate may be the best."""
    if not run.has_checkpoint(LAST_CHECKPOINT):
        return
    tensors, state = run.load_checkpoint(LAST_CHECKPOINT)
    if _VALIDATION in state:
        run.save_checkpoint(LAST_CHECKPOINT, tensors, {**state, _VALIDATION: None})


class _TrialReporter:
    """Reports the logged metrics of a trial's runs to Tune."""

    def __init__(self, plan: TrialPlan, folder: Path, n_seeds: int) -> None:
        self._plan = plan
        self._folder = folder
        self._n_seeds = n_seeds
        self._done: list[dict[str, float]] = []
        self._points: list[tuple[CurvePoint, ...]] = []
        self._progress = 0.0

    def report_progress(self, run: RunFolder) -> None:
        """Report the metrics of an unfinished run with a new validation."""
        seen = validations(run)
        if not seen:
            return
        progress, _ = seen[-1]
        overall = FULL_PROGRESS * (len(self._done) + progress) / self._n_seeds
        if progress < 1.0 and overall > self._progress:
            self._report(overall, self._values([*self._done, self._value(run)]))

    def add(self, run: RunFolder, points_on_val: tuple[CurvePoint, ...]) -> None:
        """Add a finished run, and report it unless it is the last one."""
        self._done.append(self._value(run))
        self._points.append(points_on_val)
        if len(self._done) < self._n_seeds:
            self._report(FULL_PROGRESS * len(self._done) / self._n_seeds, self._values(self._done))

    def finish(self) -> None:
        """Report the whole trial."""
        self._report(FULL_PROGRESS, self._values(self._done))

    def fail(self, error: Exception) -> None:
        """Report that the trial has failed."""
        known = isinstance(error, DfsRlError)
        name = "" if known else f"{type(error).__name__}: "
        tune.report(
            {
                PROGRESS: self._progress,
                **self._plan.file.objective.failure_values,
                FAILED: name + " ".join(str(error).split()),
                POINTS: "[]",
                TRACEBACK: "" if known else "".join(traceback.format_exception(error)),
            }
        )

    def _value(self, run: RunFolder) -> dict[str, float]:
        """Return a run's objective, without the validation of the untrained gate."""
        objective, reference_point = self._plan.file.objective, self._plan.reference_point
        learned = [points for progress, points in validations(run) if progress > 0]
        return objective.mean_of_last(
            [objective.values(points, reference_point) for points in learned]
        )

    def _values(self, of_seeds: list[dict[str, float]]) -> dict[str, float]:
        return self._plan.file.objective.mean(of_seeds)

    def _report(self, progress: float, values: Mapping[str, float]) -> None:
        self._progress = progress
        tune.report(
            {
                PROGRESS: progress,
                **values,
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
