"""A sweep as data: one YAML file, checked in full before anything is started."""

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
"""What fresh seeds begin at, above the first that is searched with."""

SchedulerName = Literal["none", "asha", "median", "pbt", "pb2"]


@configuration
class SchedulerConfig:
    """Which trials are stopped early, or copied.

    Attributes:
        name: none; asha: of the trials that come as far, only the best share goes on (asynchronous
            successive halving, Li et al., 2020); median: a trial below the median of the others'
            means is stopped; pbt: bad trials take over the weights of good ones, with changed
            settings (population-based training, Jaderberg et al., 2017); pb2: the same, changed as
            a Gaussian process advises (Parker-Holder et al., 2020).
        grace: Share of a training below which no trial is stopped.
        reduction: For asha: one of so many goes on, and stretches grow by as much.
        interval: For pbt and pb2: share of a training between two exchanges.

    Raises:
        ConfigError: If a value is out of range.
    """

    name: SchedulerName = "none"
    grace: Annotated[float, Field(gt=0, lt=1)] = 0.2
    reduction: Annotated[float, Field(gt=1)] = 3.0
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @property
    def is_population(self) -> bool:
        """Whether trials are copied."""
        return self.name in ("pbt", "pb2")


@configuration
class ResourceConfig:
    """What a trial takes.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; a fraction lets trials share one.

    Raises:
        ConfigError: If a value is out of range.
    """

    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0


@configuration
class StopConfig:
    """When to end early.

    Attributes:
        seconds: The whole sweep; trials that are not finished then are shown, but not chosen from.
        trial_seconds: A single trial; likewise.
        retries: How often a trial is begun again from its last checkpoint when its process or node
            dies; one that fails by itself is not.

    Raises:
        ConfigError: If a value is out of range.
    """

    seconds: PositiveFloat | None = None
    trial_seconds: PositiveFloat | None = None
    retries: NonNegativeInt = 3


@configuration
class RetrainConfig:
    """How the best configurations are trained again, and the defaults beside them.

    Attributes:
        best: How many of the best.
        seeds: Fresh seeds for each; 0 leaves all of this out.

    Raises:
        ConfigError: If a value is out of range.
    """

    best: PositiveInt = 1
    seeds: NonNegativeInt = 3


@configuration
class SweepFile:
    """A sweep.

    Attributes:
        command: Whose settings are searched.
        settings: Those that all trials share, as in the command's own configuration files.
        search: What is searched, by dotted name.
        objective: What is looked for.
        searcher: random, which grids need; tpe: the tree-structured Parzen estimator of Optuna, for
            one objective or two; nsga2: its genetic algorithm, for two.
        scheduler: Which trials are stopped early.
        trials: How many in all; with grids a multiple of their combinations.
        seeds: Trainings of each trial, one after another, whose objectives are averaged.
        seed: Of the search itself; trainings begin with the seed that ``settings`` gives.
        resources: What a trial takes.
        stop: When to end early.
        retrain: How the best are trained again.
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
        """Of the values of all grids; 1 without any."""
        return math.prod(len(domain.grid) for domain in self.search.values() if domain.grid)

    @property
    def base(self) -> dict[str, Any]:
        """All settings of the command where nothing is searched, nested."""
        return self._whole({})

    @property
    def defaults(self) -> dict[str, Any]:
        """The searched settings as they are where nothing is searched, by dotted name."""
        base = self.base
        return {name: get_setting(base, name) for name in self.search}

    def config(self, values: Mapping[str, object], **overrides: object) -> Any:  # noqa: ANN401 - of the command's own type
        """Return the command's configuration with searched settings in place.

        Args:
            values: By dotted name.
            overrides: Further settings, which the sweep itself gives.

        Raises:
            ConfigError: If it is not allowed.
        """
        config_type, source = command_of(self.command).config_type, "a trial"
        # Another algorithm has other settings in its block.
        choosing = [setting for setting, _ in getattr(config_type, "CHOICES", {}).values()]
        base = self._whole({name: values[name] for name in choosing if name in values})
        try:
            return config_from_dict(
                {**with_settings(base, values), **overrides}, config_type, source
            )
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{source}: ")) from error

    def _whole(self, changes: Mapping[str, object]) -> dict[str, Any]:
        """Return the shared settings with ``changes`` and all defaults, nested."""
        config_type = command_of(self.command).config_type
        return config_to_dict(
            config_from_dict({**self.settings, **changes}, config_type, "settings")
        )
