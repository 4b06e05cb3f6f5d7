"""Ray Tune's two experiments of a sweep: the search, and the best configurations on fresh seeds."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Result

from dfs_rl.errors import TrainingError
from dfs_rl.ray_start import ray_deprecations_ignored
from dfs_rl.sweeping.live import LiveView, number_of
from dfs_rl.sweeping.search import param_space, tune_config
from dfs_rl.sweeping.sharing import SharedDataset
from dfs_rl.sweeping.trial import (
    CANDIDATE,
    SEED,
    TrialPlan,
    fresh_trial,
    search_trial,
)

SEARCH = "search"
FRESH = "fresh"
_KEPT = 2
"""Checkpoints of a trial; the one before the last is there while the last is written."""


def run_search(plan: TrialPlan, shared: SharedDataset, storage: str, *, log: Path) -> list[Result]:
    """Search, or go on with a search that was begun in ``storage``.

    Args:
        plan: What to search.
        shared: The data set.
        storage: Folder or URI that all nodes can write to.
        log: File for what Ray has to say.

    Returns:
        What came of each trial, in the order in which they were made.

    Raises:
        KeyboardInterrupt: After Ctrl-C; what Tune has stored is gone on with.
        TrainingError: If the experiment cannot go on.
    """
    file = plan.file
    names = file.objective.names
    view = LiveView("trial", file.trials, metric=names[0], mode=file.objective.modes[0])
    return _fit(
        _trainable(search_trial, plan, shared),
        f"{storage}/{SEARCH}",
        lambda trainable, run: tune.Tuner(
            trainable, param_space=param_space(file), tune_config=tune_config(file), run_config=run
        ),
        _run_config(
            plan, storage, SEARCH, view, keep=None if file.scheduler.is_population else _KEPT
        ),
        log,
    )


def run_fresh(
    plan: TrialPlan, shared: SharedDataset, storage: str, *, log: Path, seeds: tuple[int, ...]
) -> list[Result]:
    """Train every candidate of ``plan`` on every seed, or go on with that.

    Args:
        plan: With the candidates.
        shared: The data set.
        storage: As for ``run_search``.
        log: Likewise.
        seeds: None of them was searched with.

    Returns:
        What came of each training.

    Raises:
        KeyboardInterrupt: After Ctrl-C; what Tune has stored is gone on with.
        TrainingError: If the experiment cannot go on.
    """
    objective = plan.file.objective
    grid = {
        CANDIDATE: tune.grid_search(list(range(len(plan.candidates)))),
        SEED: tune.grid_search(list(seeds)),
    }
    total = len(plan.candidates) * len(seeds)
    view = LiveView("again", total, metric=objective.names[0], mode=objective.modes[0])
    return _fit(
        _trainable(fresh_trial, plan, shared),
        f"{storage}/{FRESH}",
        lambda trainable, run: tune.Tuner(
            trainable,
            param_space=grid,
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=run,
        ),
        _run_config(plan, storage, FRESH, view, keep=_KEPT),
        log,
    )


def _trainable(function: Callable[..., None], plan: TrialPlan, shared: SharedDataset) -> Any:  # noqa: ANN401 - what Tune makes of a function
    resources = plan.file.resources
    with_objects = tune.with_parameters(function, plan=plan, shared=shared)
    return tune.with_resources(with_objects, {"cpu": resources.cpus, "gpu": resources.gpus})


def _run_config(
    plan: TrialPlan, storage: str, name: str, view: LiveView, *, keep: int | None
) -> tune.RunConfig:
    stop = plan.file.stop
    return tune.RunConfig(
        name=name,
        storage_path=storage,
        failure_config=tune.FailureConfig(max_failures=stop.retries),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=keep),
        stop={"time_total_s": stop.trial_seconds} if stop.trial_seconds else None,
        callbacks=[view],
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
    # The grid's order changes when it is restored.
    numbers = [number_of(trial) for trial in grid._experiment_analysis.trials]
    return [grid[index] for _, index in sorted(zip(numbers, range(len(grid)), strict=True))]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Have Ray's libraries say to a file what they would say to the screen; what concerns trials is in the live view."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # By itself, Tune takes Ctrl-C, saves, and returns as if it had come to its end.
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


def absolute(storage: str | Path) -> str:
    """Return a storage path as Ray takes it: a URI as it is, a folder from the root."""
    return (
        storage if isinstance(storage, str) and "://" in storage else str(Path(storage).resolve())
    )
