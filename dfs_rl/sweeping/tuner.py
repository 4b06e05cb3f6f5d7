"""Ray Tune's two experiments of a sweep: the search, and retraining on fresh seeds."""

import hashlib
import json
import logging
import os
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune import Result
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from sklearn.exceptions import ConvergenceWarning

from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.population import ForwardPB2, ForwardPBT
from dfs_rl.sweeping.space import optuna_distribution, tune_domain
from dfs_rl.sweeping.spec import ResourceConfig, SweepFile
from dfs_rl.sweeping.trial import (
    CANDIDATE,
    FAILED,
    FULL_PROGRESS,
    PROGRESS,
    SEED,
    TrialPlan,
    run_trial,
)
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.ray import ray_deprecations_ignored

_SEARCH = "search"
_KEPT = 2
"""Number of checkpoints to keep per trial; one remains while another is written."""
_EVERY = 30.0  # seconds between two lines about running trials
_LINE = "{:>8}  {:>7}  {:>8}  {:>8}  {:>12}  {:>12}  {}"


def run_trials(plan: TrialPlan, shared: Dataset, storage: str, *, log: Path) -> list[Result]:
    """Run or resume the search or, for a plan with candidates, their training on fresh seeds.

    ``storage`` is a folder or URI that all nodes can write to, ``log`` a file for Ray's log. The
    results are in the order of the trials' creation.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a later call resumes from Tune's stored state.
        TrainingError: If the experiment cannot continue.
    """
    file, resources = plan.file, plan.file.resources
    metric, mode = next(iter(file.objective.modes.items()))
    total = len(plan.candidates) * len(plan.seeds) or file.trials
    name = _experiment_name(plan)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, plan=plan, shared=shared),
        {"cpu": resources.cpus, "gpu": resources.gpus},
    )
    with harmless_warnings_ignored(), _logged(log):
        if tune.Tuner.can_restore(f"{storage}/{name}"):
            tuner = tune.Tuner.restore(
                f"{storage}/{name}", trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            # In a population, a trial may later start from any checkpoint of another one.
            keep = None if file.scheduler.is_population and not plan.candidates else _KEPT
            limit = file.stop.trial_seconds
            run_config = tune.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=file.stop.retries),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=keep),
                stop={"time_total_s": limit} if limit else None,
                callbacks=[_ProgressTable(total, metric, mode)],
                verbose=0,
            )
            tuner = tune.Tuner(
                trainable,
                param_space=_param_space(plan),
                tune_config=tune_config(file, search=not plan.candidates),
                run_config=run_config,
            )
        try:
            grid = tuner.fit()
        except tune.TuneError as error:
            said = " ".join(str(error).split())
            raise TrainingError(f"the experiment {name} cannot continue: {said}") from error
    # The order of the results changes on restore; folder names sort in the order of creation.
    return sorted((grid[i] for i in range(len(grid))), key=lambda result: str(result.path))


def _experiment_name(plan: TrialPlan) -> str:
    if not plan.candidates:
        return _SEARCH
    # Different candidates or seeds require a new experiment.
    fingerprinted = json.dumps([*map(dict, plan.candidates), *plan.seeds], default=str)
    return f"retrain-{hashlib.sha256(fingerprinted.encode()).hexdigest()[:8]}"


def _trial_number(trial: Trial) -> int:
    """Return Tune's creation index of a trial; the list order can differ in a resumed sweep."""
    return int(str(trial.experiment_tag).split("_")[0])


def _folder_name(trial: Trial) -> str:
    return f"trial_{_trial_number(trial):05d}"


def tune_config(file: SweepFile, *, search: bool = True) -> tune.TuneConfig:
    """Return Tune's configuration of a search, or of trials with given settings."""
    if not search:
        return tune.TuneConfig(reuse_actors=True, trial_dirname_creator=_folder_name)
    if file.scheduler.is_population:  # it uses the process's global generators
        random.seed(file.seed)
        np.random.seed(file.seed)  # noqa: NPY002
    return tune.TuneConfig(
        num_samples=file.trials // file.combinations,
        search_alg=_searcher(file),
        scheduler=_scheduler(file),
        time_budget_s=file.stop.seconds,
        reuse_actors=True,  # avoids a new worker process per trial
        trial_dirname_creator=_folder_name,
    )


def _searcher(file: SweepFile) -> BasicVariantGenerator | OptunaSearch:
    if file.searcher == "random":
        return BasicVariantGenerator(random_state=file.seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.NSGAIISampler(seed=file.seed)
            if file.searcher == "nsga2"
            # The constant liar rates running trials as bad, so that parallel trials differ.
            else optuna.samplers.TPESampler(seed=file.seed, constant_liar=True)
        )
    names, modes = list(file.objective.modes), list(file.objective.modes.values())
    single = len(names) == 1
    return OptunaSearch(
        space={name: optuna_distribution(domain) for name, domain in file.search.items()},
        metric=names[0] if single else names,
        mode=modes[0] if single else modes,  # type: ignore[arg-type]
        sampler=sampler,
    )


def _scheduler(file: SweepFile) -> TrialScheduler:
    """Return the scheduler; all schedulers measure time in percent of a training."""
    scheduler = file.scheduler
    if scheduler.name == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    metric, mode = next(iter(file.objective.modes.items()))
    goal: dict[str, Any] = {"time_attr": PROGRESS, "metric": metric, "mode": mode}
    grace = FULL_PROGRESS * (scheduler.grace or 0.0)
    if scheduler.name == "asha":
        goal |= {"max_t": FULL_PROGRESS, "reduction_factor": scheduler.reduction}
        return ASHAScheduler(**goal, grace_period=max(1, round(grace)))
    if scheduler.name == "median":
        return MedianStoppingRule(**goal, grace_period=grace)
    goal["perturbation_interval"] = FULL_PROGRESS * (scheduler.interval or 0.0)
    goal["custom_explore_fn"] = partial(_clipped, file)
    if scheduler.name == "pbt":
        mutations = {name: tune_domain(domain) for name, domain in file.search.items()}
        return ForwardPBT(**goal, hyperparam_mutations=mutations)
    bounds: dict[str, Any] = {name: list(domain.ends) for name, domain in file.search.items()}
    return ForwardPB2(**goal, hyperparam_bounds=bounds)


def _clipped(file: SweepFile, config: dict[str, Any]) -> dict[str, Any]:
    """Clip settings to their ranges, after Tune multiplied them or rounded them to float32."""
    ends = {name: file.search[name].ends for name in config}
    return {n: min(max(value, ends[n][0]), ends[n][1]) for n, value in config.items()}


def _param_space(plan: TrialPlan) -> dict[str, Any]:
    if plan.candidates:
        return {
            CANDIDATE: tune.grid_search(list(range(len(plan.candidates)))),
            SEED: tune.grid_search(list(plan.seeds)),
        }
    if plan.file.searcher != "random":
        return {}  # Optuna's searchers have their own
    return {name: tune_domain(domain) for name, domain in plan.file.search.items()}


class _ProgressTable(tune.Callback):
    """Prints a line for each trial that ends, and one about the running trials at intervals.

    The values come from Tune's trials only, so a resumed sweep shows the same figures as before.
    """

    def __init__(self, total: int, metric: str, mode: str) -> None:
        self._total = total
        self._metric = metric
        self._best = max if mode == "max" else min

    def setup(self, *args: Any, **info: Any) -> None:  # noqa: ARG002, ANN401
        """Print the head of the table, at the start and when a sweep resumes."""
        self._start = self._last = time.monotonic()
        self._made_before: float | None = None
        self._printed: set[str] = set()
        print_status(
            _LINE.format("minutes", "trial", "done", "progress", self._metric, "best", "left")
        )

    def on_step_end(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],
        **info: Any,  # noqa: ARG002, ANN401
    ) -> None:
        """Print the trials that have ended and, at intervals, the running ones."""
        if self._made_before is None:
            self._made_before = _trainings_made(trials)
        for rank, trial in enumerate(sorted(trials, key=_trial_number), start=1):
            if _has_ended(trial) and trial.trial_id not in self._printed:
                self._printed.add(trial.trial_id)
                self._print(f"{rank:03d}", trial, trials)
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        if running and time.monotonic() - self._last >= _EVERY:
            self._print(f"{len(running)} run", max(running, key=_progress), trials)

    def _print(self, name: str, trial: Trial, trials: list[Trial]) -> None:
        self._last = time.monotonic()
        minutes = (self._last - self._start) / 60
        result = trial.last_result or {}
        value = f"{result[self._metric]:.4g}" if self._metric in result else ""
        finished = [t.last_result for t in trials if _progress(t) >= FULL_PROGRESS]
        values = [r[self._metric] for r in finished if not (r[FAILED] or is_penalty(r))]
        made, left = _trainings_made(trials), ""
        if made > (self._made_before or 0.0):
            rate = minutes / (made - (self._made_before or 0.0))
            left = f"about {rate * (self._total - made):.1f} min"
        reason = result.get(FAILED)
        if trial.status == Trial.ERROR:
            reason = "its process died too often"
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
def harmless_warnings_ignored() -> Iterator[None]:
    """Ignore the warnings of searchers and schedulers that tell a user nothing."""
    with ray_deprecations_ignored():
        warnings.simplefilter("ignore", ConvergenceWarning)  # from PB2's model with few trials
        # A resumed trial may report its last step once more.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        yield


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
    """Check that Ray can access the storage of trials."""
    try:
        with ray_deprecations_ignored():
            tune.Tuner.can_restore(f"{storage}/{_SEARCH}")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"storage_path leads to {storage}, which is not usable: {said}"
        ) from error


def check_resources(resources: ResourceConfig, *, shares_storage: bool) -> None:
    """Check that a node of the cluster has the resources of a trial, which would else wait forever.

    Several machines need a shared storage for trials.
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
