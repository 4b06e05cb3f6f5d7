"""Contents of a sweep's YAML file."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.commands import CommandName, command_of
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.space import Domain, get_setting, with_settings
from dfs_rl.utils.config import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    config_from_dict,
    config_to_dict,
    configuration,
)

SearcherName = Literal["random", "tpe", "nsga2"]
FIRST_RETRAIN_SEED = 1000
"""Offset of the fresh seeds from the first seed of the search."""

SchedulerName = Literal["none", "asha", "median", "pbt", "pb2"]


@configuration
class SchedulerConfig:
    """Rule for stopping or copying trials early.

    Attributes:
        name: none; asha: of the trials with equal progress, only the best fraction continues
            (asynchronous successive halving, Li et al., 2020); median: a trial below the median of
            the other trials' means is stopped; pbt: bad trials copy the weights of good ones, with
            changed settings (population-based training, Jaderberg et al., 2017); pb2: the same,
            with changes proposed by a Gaussian process (Parker-Holder et al., 2020).
        grace: Fraction of a training during which no trial is stopped.
        reduction: For asha: one of this number of trials continues, and intervals grow by this
            factor.
        interval: For pbt and pb2: fraction of a training between two exchanges.
    """

    name: SchedulerName = "none"
    grace: Annotated[float, Field(gt=0, lt=1)] = 0.2
    reduction: Annotated[float, Field(gt=1)] = 3.0
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @property
    def is_population(self) -> bool:
        """True if trials copy each other."""
        return self.name in ("pbt", "pb2")


@configuration
class ResourceConfig:
    """Resources of one trial.

    Attributes:
        cpus: Number of CPU cores.
        gpus: Number of GPUs; with a fraction, trials share one.
    """

    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0


@configuration
class StopConfig:
    """Limits on time and retries.

    Attributes:
        seconds: Time limit of the whole sweep; trials that are unfinished then are shown, but
            cannot be chosen.
        trial_seconds: Time limit of a single trial, with the same effect.
        retries: Number of restarts of a trial from its last checkpoint when its process or node
            dies; a trial that fails with an error is not restarted.
    """

    seconds: PositiveFloat | None = None
    trial_seconds: PositiveFloat | None = None
    retries: NonNegativeInt = 3


@configuration
class RetrainConfig:
    """Retraining of the best configurations and of the defaults.

    Attributes:
        best: Number of best trials to retrain.
        seeds: Number of fresh seeds for each; 0 disables retraining.
    """

    best: PositiveInt = 1
    seeds: NonNegativeInt = 3


@configuration
class SweepFile:
    """A sweep.

    Attributes:
        command: Command whose settings are searched.
        settings: Settings of all trials, as in the command's configuration files.
        search: Domains of the searched settings, by dotted name.
        objective: Objective of the search.
        searcher: random, which grids require; tpe: the tree-structured Parzen estimator of Optuna,
            for one objective or two; nsga2: Optuna's genetic algorithm, for two.
        scheduler: Rule for stopping or copying trials early.
        trials: Number of trials; with grids a multiple of their combinations.
        seeds: Number of sequential trainings per trial, whose objectives are averaged.
        seed: Seed of the search; trainings start with the seed in ``settings``.
        resources: Resources of one trial.
        stop: Limits on time and retries.
        retrain: Retraining of the best trials.
    """

    command: CommandName
    settings: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Domain]
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    searcher: SearcherName = "tpe"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trials: PositiveInt = 24
    seeds: PositiveInt = 1
    seed: Seed = 0
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    @property
    def combinations(self) -> int:
        """Number of combinations of all grid values; 1 without grids."""
        return math.prod(len(domain.grid) for domain in self.search.values() if domain.grid)

    @property
    def base(self) -> dict[str, Any]:
        """All settings of the command without searched values, nested."""
        return self._whole({})

    @property
    def defaults(self) -> dict[str, Any]:
        """Default values of the searched settings, by dotted name."""
        base = self.base
        return {name: get_setting(base, name) for name in self.search}

    def config(self, values: Mapping[str, object], **overrides: object) -> Any:  # noqa: ANN401
        """Return the command's configuration with the searched settings.

        Args:
            values: Searched settings by dotted name.
            overrides: Further settings that the sweep sets.

        Raises:
            ConfigError: If the configuration is invalid.
        """
        config_type, source = command_of(self.command).config_type, "a trial"
        # Resolve choices first: each algorithm has different settings in its block.
        choosing = [setting for setting, _ in getattr(config_type, "CHOICES", {}).values()]
        base = self._whole({name: values[name] for name in choosing if name in values})
        settings = with_settings(base, values) | overrides
        try:
            return config_from_dict(settings, config_type, source)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{source}: ")) from error

    def _whole(self, changes: Mapping[str, object]) -> dict[str, Any]:
        """Return the shared settings with ``changes`` and all defaults, nested."""
        config_type = command_of(self.command).config_type
        return config_to_dict(
            config_from_dict({**self.settings, **changes}, config_type, "settings")
        )
