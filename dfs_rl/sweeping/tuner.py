"""Ray Tune's two experiments of a sweep: the search, and retraining on fresh seeds."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Result
from sklearn.exceptions import ConvergenceWarning

from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.sweeping.progress_reporter import ProgressReporter, trial_number
from dfs_rl.sweeping.search import param_space, tune_config
from dfs_rl.sweeping.spec import ResourceConfig
from dfs_rl.sweeping.tensorboard_sync import TensorBoardSync
from dfs_rl.sweeping.trial import CANDIDATE, SEED, TrialPlan, retrain_trial, search_trial
from dfs_rl.utils.ray import ray_deprecations_ignored

SEARCH = "search"
RETRAIN = "retrain"
_KEPT = 2
"""Number of checkpoints to keep per trial; one remains while another is written."""


def run_search(
    plan: TrialPlan,
    shared: Dataset,
    storage: str,
    *,
    log: Path,
    tensorboard_sync: TensorBoardSync,
) -> list[Result]:
    """Run the search, or resume the one in ``storage``.

    Args:
        plan: Common data of the trials.
        shared: The data set.
        storage: Folder or URI that all nodes can write to.
        log: File for Ray's log.
        tensorboard_sync: Callback that copies the trials' TensorBoard events.

    Returns:
        Results of the trials, in the order of their creation.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a later call resumes from Tune's stored state.
        TrainingError: If the experiment cannot continue.
    """
    file = plan.file
    names = file.objective.names
    view = ProgressReporter("trial", file.trials, metric=names[0], mode=file.objective.modes[0])
    return _fit(
        _trainable(search_trial, plan, shared),
        f"{storage}/{SEARCH}",
        lambda trainable, run: tune.Tuner(
            trainable, param_space=param_space(file), tune_config=tune_config(file), run_config=run
        ),
        _run_config(
            plan,
            storage,
            SEARCH,
            [view, tensorboard_sync],
            # In a population, a trial may later start from any checkpoint of another one.
            keep=None if file.scheduler.is_population else _KEPT,
        ),
        log,
    )


def retrain_best(
    plan: TrialPlan, shared: Dataset, storage: str, *, log: Path, seeds: tuple[int, ...]
) -> list[Result]:
    """Train every candidate of ``plan`` on every seed, or resume these trainings.

    Args:
        plan: Common data of the trials, with the candidates.
        shared: The data set.
        storage: Folder or URI that all nodes can write to.
        log: File for Ray's log.
        seeds: Seeds that the search has not used.

    Returns:
        Results of the trainings, in the order of their creation.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a later call resumes from Tune's stored state.
        TrainingError: If the experiment cannot continue.
    """
    objective = plan.file.objective
    # Different candidates or seeds require a new experiment.
    fingerprinted = json.dumps([*map(dict, plan.candidates), *seeds], default=str)
    name = f"{RETRAIN}-{hashlib.sha256(fingerprinted.encode()).hexdigest()[:8]}"
    grid = {
        CANDIDATE: tune.grid_search(list(range(len(plan.candidates)))),
        SEED: tune.grid_search(list(seeds)),
    }
    total = len(plan.candidates) * len(seeds)
    view = ProgressReporter("again", total, metric=objective.names[0], mode=objective.modes[0])
    return _fit(
        _trainable(retrain_trial, plan, shared),
        f"{storage}/{name}",
        lambda trainable, run: tune.Tuner(
            trainable,
            param_space=grid,
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=run,
        ),
        _run_config(plan, storage, name, [view], keep=_KEPT),
        log,
    )


def _trainable(
    function: Callable[..., None],
    plan: TrialPlan,
    shared: Dataset,
) -> Any:  # noqa: ANN401
    resources = plan.file.resources
    with_objects = tune.with_parameters(function, plan=plan, shared=shared)
    return tune.with_resources(with_objects, {"cpu": resources.cpus, "gpu": resources.gpus})


def _run_config(
    plan: TrialPlan, storage: str, name: str, views: list[tune.Callback], *, keep: int | None
) -> tune.RunConfig:
    stop = plan.file.stop
    return tune.RunConfig(
        name=name,
        storage_path=storage,
        failure_config=tune.FailureConfig(max_failures=stop.retries),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=keep),
        stop={"time_total_s": stop.trial_seconds} if stop.trial_seconds else None,
        callbacks=views,
        verbose=0,
    )


def _fit(
    trainable: Any,  # noqa: ANN401
    path: str,
    make: Callable[[Any, tune.RunConfig], tune.Tuner],
    run: tune.RunConfig,
    log: Path,
) -> list[Result]:
    with ray_deprecations_ignored(), _logged(log):
        warnings.simplefilter("ignore", ConvergenceWarning)  # from PB2's model with few trials
        if tune.Tuner.can_restore(path):
            tuner = tune.Tuner.restore(
                path, trainable=trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            tuner = make(trainable, run)
        try:
            grid = tuner.fit()
        except tune.TuneError as error:
            raise TrainingError(
                f"the search in {path} cannot go on: {' '.join(str(error).split())}"
            ) from error
    # The order of the results changes on restore.
    numbers = [trial_number(trial) for trial in grid._experiment_analysis.trials]
    return [grid[index] for _, index in sorted(zip(numbers, range(len(grid)), strict=True))]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Redirect the log output of Ray's libraries from the screen to a file.

    The live view shows the state of the trials.
    """
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
            f"storage_path leads to {storage}, where nothing can be stored: {said}"
        ) from error
    if taken:
        raise ConfigError(
            f"storage_path leads to {storage}, which holds a sweep already; choose another one."
        )


def check_resources(resources: ResourceConfig, *, shares_storage: bool) -> None:
    """Check that a node of the cluster has the resources of a trial.

    Without such a node, trials would wait forever.

    Args:
        resources: Resources of one trial.
        shares_storage: Whether all nodes share a storage for trials.

    Raises:
        ConfigError: If no node has these resources, or there are several machines without a shared
            storage.
    """
    import ray

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


def absolute(storage: str | Path) -> str:
    """Return a storage path for Ray: a URI unchanged, a folder as an absolute path."""
    return (
        storage if isinstance(storage, str) and "://" in storage else str(Path(storage).resolve())
    )
