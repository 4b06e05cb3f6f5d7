"""Ray Tune's two experiments of a sweep: the search, and retraining on fresh seeds."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Result
from ray.tune.experiment import Trial
from sklearn.exceptions import ConvergenceWarning

from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.search import folder_name, param_space, trial_number, tune_config
from dfs_rl.sweeping.spec import ResourceConfig
from dfs_rl.sweeping.trial import (
    CANDIDATE,
    FAILED,
    FULL_PROGRESS,
    PROGRESS,
    SEED,
    TrialPlan,
    retrain_trial,
    search_trial,
)
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.ray import ray_deprecations_ignored

SEARCH = "search"
RETRAIN = "retrain"
_KEPT = 2
"""Number of checkpoints to keep per trial; one remains while another is written."""
_EVERY = 30.0
"""Seconds between two lines about running trials."""
_LINE = "{:>8}  {:>7}  {:>8}  {:>8}  {:>12}  {:>12}  {}"


def run_search(plan: TrialPlan, shared: Dataset, storage: str, *, log: Path) -> list[Result]:
    """Run the search, or resume the one in ``storage``.

    Args:
        plan: Common data of the trials.
        shared: The data set.
        storage: Folder or URI that all nodes can write to.
        log: File for Ray's log.

    Returns:
        Results of the trials, in the order of their creation.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a later call resumes from Tune's stored state.
        TrainingError: If the experiment cannot continue.
    """
    file = plan.file
    return _fit(
        tune.with_parameters(search_trial, plan=plan, shared=shared),
        plan,
        f"{storage}/{SEARCH}",
        log,
        total=file.trials,
        # In a population, a trial may later start from any checkpoint of another one.
        keep=None if file.scheduler.is_population else _KEPT,
        search=lambda: {"param_space": param_space(file), "tune_config": tune_config(file)},
    )


def retrain_best(
    plan: TrialPlan, shared: Dataset, storage: str, *, log: Path, seeds: Sequence[int]
) -> list[Result]:
    """Train every candidate of ``plan`` on every fresh seed, or resume; see ``run_search``."""
    # Different candidates or seeds require a new experiment.
    fingerprinted = json.dumps([*map(dict, plan.candidates), *seeds], default=str)
    name = f"{RETRAIN}-{hashlib.sha256(fingerprinted.encode()).hexdigest()[:8]}"
    grid = {
        CANDIDATE: tune.grid_search(list(range(len(plan.candidates)))),
        SEED: tune.grid_search(list(seeds)),
    }
    config = tune.TuneConfig(reuse_actors=True, trial_dirname_creator=folder_name)
    return _fit(
        tune.with_parameters(retrain_trial, plan=plan, shared=shared),
        plan,
        f"{storage}/{name}",
        log,
        total=len(plan.candidates) * len(seeds),
        keep=_KEPT,
        search=lambda: {"param_space": grid, "tune_config": config},
    )


def _fit(
    function: Any,  # noqa: ANN401
    plan: TrialPlan,
    path: str,
    log: Path,
    *,
    total: int,
    keep: int | None,
    search: Callable[[], dict[str, Any]],
) -> list[Result]:
    """Run or resume the experiment in ``path``; ``search`` returns the settings of a new one."""
    resources, stop = plan.file.resources, plan.file.stop
    trainable = tune.with_resources(function, {"cpu": resources.cpus, "gpu": resources.gpus})
    storage, _, name = path.rpartition("/")
    metric, mode = next(iter(plan.file.objective.modes.items()))
    with ray_deprecations_ignored(), _logged(log):
        warnings.simplefilter("ignore", ConvergenceWarning)  # from PB2's model with few trials
        if tune.Tuner.can_restore(path):
            tuner = tune.Tuner.restore(
                path, trainable=trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            run_config = tune.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=stop.retries),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=keep),
                stop={"time_total_s": stop.trial_seconds} if stop.trial_seconds else None,
                callbacks=[ProgressTable(total, metric=metric, maximize=mode == "max")],
                verbose=0,
            )
            tuner = tune.Tuner(trainable, run_config=run_config, **search())
        try:
            grid = tuner.fit()
        except tune.TuneError as error:
            said = " ".join(str(error).split())
            raise TrainingError(f"the experiment in {path} cannot continue: {said}") from error
    # The order of the results changes on restore; folder names sort in the order of creation.
    return sorted((grid[i] for i in range(len(grid))), key=lambda result: str(result.path))


class ProgressTable(tune.Callback):
    """Prints a line for each trial that ends, and one about the running trials at intervals.

    The values come from Tune's trials only, so a resumed sweep shows the same figures as before.

    Args:
        total: Number of trials.
        metric: Name of the objective.
        maximize: Whether the highest value is the best.
    """

    def __init__(self, total: int, *, metric: str, maximize: bool) -> None:
        self._total = total
        self._metric = metric
        self._best = max if maximize else min
        self._start: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the clock, because Tune stores its callbacks."""
        return {**self.__dict__, "_start": None}

    def on_step_end(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],
        **info: Any,  # noqa: ARG002, ANN401
    ) -> None:
        """Print the trials that have ended and, at intervals, the running ones."""
        now = time.monotonic()
        if self._start is None:
            self._start = self._last = now
            self._made_before = _trainings_made(trials)
            self._printed: set[str] = set()
            print_status(
                _LINE.format("minutes", "trial", "done", "progress", self._metric, "best", "left")
            )
        for rank, trial in enumerate(sorted(trials, key=trial_number), start=1):
            if _has_ended(trial) and trial.trial_id not in self._printed:
                self._printed.add(trial.trial_id)
                self._print(f"{rank:03d}", trial, trials)
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        if running and now - self._last >= _EVERY:
            self._print(f"{len(running)} run", max(running, key=_progress), trials)

    def _print(self, name: str, trial: Trial, trials: list[Trial]) -> None:
        self._last = time.monotonic()
        assert self._start is not None
        minutes = (self._last - self._start) / 60
        result = trial.last_result or {}
        reason = result.get(FAILED)
        if trial.status == Trial.ERROR:
            reason = "its process died too often"
        left, made = "", _trainings_made(trials)
        if made > self._made_before:
            rate = minutes / (made - self._made_before)
            left = f"about {rate * (self._total - made):.1f} min"
        value = f"{result[self._metric]:.4g}" if self._metric in result else ""
        finished = [t.last_result for t in trials if _progress(t) >= FULL_PROGRESS]
        values = [r[self._metric] for r in finished if not (r[FAILED] or is_penalty(r))]
        print_status(
            _LINE.format(
                f"{minutes:.1f}",
                name,
                f"{sum(map(_has_ended, trials))}/{self._total}",
                f"{_progress(trial):.0f} %",
                "failed" if reason else "above budget" if is_penalty(result) else value,
                f"{self._best(values):.4g}" if values else "",
                f"failed: {reason}" if reason else left,
            )
        )


def _has_ended(trial: Trial) -> bool:
    return trial.status in (Trial.TERMINATED, Trial.ERROR)


def _progress(trial: Trial) -> float:
    return float((trial.last_result or {}).get(PROGRESS, 0.0))


def _trainings_made(trials: list[Trial]) -> float:
    """Return the completed work in trainings; a trial that has ended counts as one."""
    return sum(1.0 if _has_ended(t) else _progress(t) / FULL_PROGRESS for t in trials)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Redirect the log output of Ray's libraries from the screen to a file."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # By default, Tune catches Ctrl-C, saves, and returns as if it had finished.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handler = logging.FileHandler(path, delay=True)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        handler.close()
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def check_storage(storage: str) -> None:
    """Validate the storage of trials.

    Raises:
        ConfigError: If Ray cannot access the storage, or it already contains a sweep.
    """
    try:
        with ray_deprecations_ignored():
            taken = tune.Tuner.can_restore(f"{storage}/{SEARCH}")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"storage_path leads to {storage}, which is not usable: {said}"
        ) from error
    if taken:
        raise ConfigError(
            f"storage_path leads to {storage}, which already has a sweep; choose another one."
        )


def check_resources(resources: ResourceConfig, *, shares_storage: bool) -> None:
    """Check that a node of the cluster has the resources of a trial, which would else wait forever.

    Args:
        resources: Resources of one trial.
        shares_storage: Whether all nodes share a storage for trials.

    Raises:
        ConfigError: If no node has these resources, or there are several machines without a shared
            storage.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    for name, key in (("cpus", "CPU"), ("gpus", "GPU")):
        wanted = getattr(resources, name)
        most = max((node["Resources"].get(key, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise ConfigError(
                f"resources.{name} is {wanted:g}, but the largest node here has {most:g}; ask for "
                "less, or start Ray with more."
            )
    machines = {node["NodeManagerAddress"] for node in nodes}
    if len(machines) > 1 and not shares_storage:
        raise ConfigError(
            f"the cluster has {len(machines)} machines, but no storage_path is given; name a "
            "folder that all of them share, or a URI."
        )
