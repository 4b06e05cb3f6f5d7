"""Searchers and schedulers of Ray Tune and Optuna for a sweep file."""

import random
import warnings
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from dfs_rl.sweeping.space import Domain, encode_value
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.sweeping.trial import FULL_PROGRESS, PROGRESS


def trial_number(trial: Trial) -> int:
    """Return Tune's creation index of a trial; the list order can differ in a resumed sweep."""
    return int(str(trial.experiment_tag).split("_")[0])


def folder_name(trial: Trial) -> str:
    """Return the folder name of a trial; names sort in the order of creation."""
    return f"trial_{trial_number(trial):05d}"


def tune_config(file: SweepFile) -> tune.TuneConfig:
    """Return Tune's search configuration."""
    if file.scheduler.is_population:  # it uses the process's global generators
        random.seed(file.seed)
        np.random.seed(file.seed)  # noqa: NPY002
    return tune.TuneConfig(
        num_samples=file.trials // file.combinations,
        search_alg=_searcher(file),
        scheduler=_scheduler(file),
        time_budget_s=file.stop.seconds,
        reuse_actors=True,  # avoids a new worker process per trial
        trial_dirname_creator=folder_name,
    )


def param_space(file: SweepFile) -> dict[str, Any]:
    """Return Tune's search space; empty for Optuna's searchers, which have their own."""
    if file.searcher != "random":
        return {}
    return {name: _tune_domain(domain) for name, domain in file.search.items()}


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
    grace = FULL_PROGRESS * scheduler.grace
    if scheduler.name == "asha":
        return ASHAScheduler(
            **goal,
            max_t=FULL_PROGRESS,
            grace_period=max(1, round(grace)),
            reduction_factor=scheduler.reduction,
        )
    if scheduler.name == "median":
        return MedianStoppingRule(**goal, grace_period=grace)
    goal["perturbation_interval"] = FULL_PROGRESS * scheduler.interval
    goal["custom_explore_fn"] = partial(_clipped, file)
    if scheduler.name == "pbt":
        mutations = {name: _tune_domain(domain) for name, domain in file.search.items()}
        return PopulationBasedTraining(**goal, hyperparam_mutations=mutations)
    bounds: dict[str, Any] = {name: list(domain.ends) for name, domain in file.search.items()}
    return PB2(**goal, hyperparam_bounds=bounds)


def _clipped(file: SweepFile, config: dict[str, Any]) -> dict[str, Any]:
    """Clip settings to their ranges, after Tune multiplied them or rounded them to float32."""
    ends = {name: file.search[name].ends for name in config}
    return {n: min(max(value, ends[n][0]), ends[n][1]) for n, value in config.items()}


def _tune_domain(domain: Domain) -> Any:  # noqa: ANN401 - grids are plain dicts
    if domain.values:
        words = [encode_value(value) for value in domain.values]
        return tune.grid_search(words) if domain.grid else tune.choice(words)
    if domain.quniform is not None:
        # Tune's quniform starts its intervals at 0, not at the lower end.
        return tune.choice(list(domain.steps))
    if domain.randint is not None:
        first, last = domain.randint
        return tune.randint(first, last + 1)  # Tune excludes the upper end
    return (tune.loguniform if domain.loguniform else tune.uniform)(*domain.ends)


def optuna_distribution(domain: Domain) -> BaseDistribution:
    """Return the Optuna distribution of a domain; values of a choice are encoded as text."""
    if domain.values:
        return CategoricalDistribution([encode_value(value) for value in domain.values])
    if domain.randint is not None:
        return IntDistribution(*domain.randint)
    low, high = domain.ends
    if domain.quniform is not None:
        return FloatDistribution(low, domain.steps[-1], step=domain.quniform[2])
    return FloatDistribution(low, high, log=domain.loguniform is not None)
