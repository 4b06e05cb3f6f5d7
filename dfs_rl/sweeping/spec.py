"""Contents of a sweep's YAML file, and their validation; every error names file and line."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dfs_rl.costs import COMPUTATION
from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.comparison_config import GATE_COMMANDS
from dfs_rl.sweeping.commands import CommandName, Config, check
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.space import Domain, decode_value, get_setting, with_settings
from dfs_rl.utils.config import (
    MAX_COUNT,
    SEEDS,
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Seed,
    allowed_names,
    config_from_dict,
    config_to_dict,
    configuration,
    fields_from_dict,
    flat_settings,
)
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.yaml_core import YamlSettings, parse_value, read_yaml

FIRST_RETRAIN_SEED = 1000
"""Offset of the fresh seeds from the first seed of the search."""
_NOT_SEARCHED = (
    *("seed", "run_dir", "dataset", "image_size", "flip", "corruptions"),
    *("backbone", "device", "threads", "workers"),
    *("cost", "latency", "budget_unit"),
    *("width", "patch", "stem", "first_block", "granularity"),
)
"""Settings that must be the same in all trials, or that the sweep sets itself.

Costs are in percent of the gated layers, so networks of different layers cannot be compared.
"""
_SCHEDULER_SETTINGS = {
    "grace": (0.2, ("asha", "median")),
    "reduction": (3.0, ("asha",)),
    "interval": (0.1, ("pbt", "pb2")),
}
"""Default of each setting of a scheduler, and the schedulers that have it."""


@configuration
class SchedulerConfig:
    """Rule for stopping or copying trials early.

    Attributes:
        name: none; asha: of the trials with equal progress, only the best fraction continues
            (asynchronous successive halving, Li et al., 2020); median: a trial below the median of
            the other trials' means is stopped; pbt: bad trials copy the weights of good ones that
            are as far, with changed settings (population-based training, Jaderberg et al., 2017);
            pb2: the same, with changes proposed by a Gaussian process (Parker-Holder et al., 2020).
        grace: For asha and median: fraction of a training during which no trial is stopped;
            default: 0.2.
        reduction: For asha: one of this number of trials continues, and intervals grow by this
            factor; default: 3.
        interval: For pbt and pb2: fraction of a training between two exchanges; default: 0.1.
    """

    name: Literal["none", "asha", "median", "pbt", "pb2"] = "none"
    grace: Annotated[float, Field(gt=0, lt=1)] | None = None
    reduction: Annotated[float, Field(gt=1)] | None = None
    interval: Annotated[float, Field(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        for setting, (default, owners) in _SCHEDULER_SETTINGS.items():
            value = getattr(self, setting)
            if value is not None and self.name not in owners:
                raise ConfigError(
                    f"{setting} is {value:g}, but scheduler {self.name!r} has no {setting}; leave "
                    f"it out, or take {' or '.join(owners)}."
                )
            if value is None and self.name in owners:
                object.__setattr__(self, setting, default)

    @property
    def is_population(self) -> bool:
        """True if trials copy each other."""
        return self.name in ("pbt", "pb2")


@configuration
class ResourceConfig:
    """CPU cores and GPUs of one trial; with a fraction of a GPU, trials share one."""

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
    """Retraining of the ``best`` trials and of the defaults on fresh seeds; 0 disables it."""

    best: Count = 1
    seeds: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 3


@configuration
class SweepFile:
    """A sweep.

    Attributes:
        settings: Settings of all trials, as in the command's configuration files.
        search: Domains of the searched settings, by dotted name.
        searcher: random, which grids require; tpe: the tree-structured Parzen estimator of Optuna,
            for one objective or two; nsga2: Optuna's genetic algorithm, for two.
        trials: Number of trials; with grids a multiple of their combinations.
        seeds: Number of sequential trainings per trial, whose objectives are averaged.
        seed: Seed of the search; trainings start with the seed in ``settings``.
    """

    command: CommandName
    settings: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Domain]
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    searcher: Literal["random", "tpe", "nsga2"] = "tpe"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trials: Count = 24
    seeds: Count = 1
    seed: Seed = 0
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    @property
    def config_type(self) -> type[Config]:
        """Configuration of the command."""
        return GATE_COMMANDS[self.command] if self.trains_gates else TrainBackboneConfig

    @property
    def trains_gates(self) -> bool:
        """True unless the command trains backbones."""
        return self.command != "train_backbone"

    @property
    def cost_model(self) -> str:
        """Cost model that all figures of computation follow."""
        return str(self.settings.get("cost", COMPUTATION))

    @property
    def combinations(self) -> int:
        """Number of combinations of all grid values; 1 without grids."""
        return math.prod(len(domain.grid) for domain in self.search.values() if domain.grid)

    @property
    def defaults(self) -> dict[str, Any]:
        """Default values of the searched settings, by dotted name."""
        base = self.base
        return {name: get_setting(base, name) for name in self.search}

    def decoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched settings that Tune proposes, where choices are encoded as text."""
        return {
            name: decode_value(value) if self.search[name].values else value
            for name, value in values.items()
        }

    def config(self, values: Mapping[str, object], **overrides: object) -> Config:
        """Return the command's configuration with searched settings, and others of the sweep."""
        source = "a trial"
        # Resolve choices first: each algorithm has different settings in its block.
        choosing = [setting for setting, _ in getattr(self.config_type, "CHOICES", {}).values()]
        base = self._settings_with({name: values[name] for name in choosing if name in values})
        settings = with_settings(base, values) | overrides
        try:
            return config_from_dict(settings, self.config_type, source)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{source}: ")) from error

    @property
    def base(self) -> dict[str, Any]:
        """All settings of the command without searched values, nested."""
        return self._settings_with({})

    def _settings_with(self, changes: Mapping[str, object]) -> dict[str, Any]:
        settings = {**self.settings, **changes}
        return config_to_dict(config_from_dict(settings, self.config_type, "settings"))


def load_sweep_file(path: Path, changes: Mapping[str, object] | None = None) -> SweepFile:
    """Read and validate a sweep; values of the command line, by dotted name, replace the file's."""
    given = read_yaml(path)
    if not changes:
        return _validated(given, str(path))
    source = f"{path} with the given flags"
    try:
        return _validated(YamlSettings(with_settings(given, changes), {}), source)
    except ConfigError as error:
        try:
            _validated(given, str(path))
        except ConfigError as own:
            if str(own).endswith(str(error).removeprefix(f"{source}: ")):
                raise own from None  # it has a line
        raise


def parse_overrides(words: Sequence[str]) -> dict[str, object]:
    """Parse settings in the form NAME=VALUE, with values in YAML syntax."""
    changes: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {word} is no setting; write NAME=VALUE.")
        if name in changes:
            raise ConfigError(f"--set gives {name} twice; give it once.")
        changes[name.replace("-", "_")] = parse_value(value)
    return changes


def check_with_dataset(file: SweepFile, dataset: Dataset, path: Path) -> None:
    """Validate settings, every choice and both ends of every range against data and backbone."""
    given = read_yaml(path)
    with _located(given, str(path), "objective"):
        config = file.config({})
        unit = getattr(config, "budget_unit", "percent")
        has_budget = "budget" in file.search or getattr(config, "budget", None) is not None
        if has_budget and file.objective.budget is not None and file.objective.budget_unit != unit:
            raise ConfigError(
                f"objective.budget is in {file.objective.budget_unit}, but settings.budget_unit is "
                f"{unit!r}; give both in one unit."
            )
    with _located(given, str(path), "settings"):
        check(file.config({}), dataset)
    for name in file.search:
        with _located(given, str(path), "search", name):
            _check_samples(file, name, dataset)


def _validated(given: YamlSettings, source: str) -> SweepFile:
    file = config_from_dict(given, SweepFile, source)
    fields_from_dict(given.part("settings"), file.config_type, source)
    with _located(given, source, "settings"):
        _check_settings(file)
    for name in file.search:
        with _located(given, source, "search", name):
            _check_searched(file, name)
    with _located(given, source, "trials"):
        _check_trials(file)
    with _located(given, source, "searcher"):
        _check_searcher(file)
    with _located(given, source, "scheduler", "name"):
        _check_scheduler(file)
    with _located(given, source, "objective", "name"):
        _check_objective(file)
    return file


@contextmanager
def _located(given: YamlSettings, source: str, *place: str) -> Iterator[None]:
    """Add source and line of the value at ``place`` to any ``ConfigError`` in the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{given.where(source, place)}: {error}") from error


def _check_samples(file: SweepFile, name: str, dataset: Dataset | None = None) -> None:
    """Check the configuration of each sample of a searched setting, with the data set if given."""
    for value in file.search[name].samples:
        try:
            config = file.config({name: value})
            if dataset is not None:
                check(config, dataset)
        except ConfigError as error:  # noqa: PERF203 - there are few samples
            raise ConfigError(f"{name} may be {value}, which is not allowed: {error}") from error


def _check_settings(file: SweepFile) -> None:
    if "run_dir" in file.settings:
        raise ConfigError("settings has run_dir, which the sweep sets for each trial; omit it.")
    base = file.base
    if base.get("workers", 1) > 1:
        raise ConfigError(
            f"settings has {base['workers']} workers, but a trial is one process; leave workers "
            "out: trials run in parallel."
        )
    highest = base["seed"] + max(file.seeds, FIRST_RETRAIN_SEED + file.retrain.seeds)
    if highest > SEEDS:
        raise ConfigError(
            f"settings has seed {base['seed']}, but fresh seeds start {FIRST_RETRAIN_SEED} above "
            f"it and the highest one is {SEEDS - 1}; take a lower seed."
        )
    if base["dataset"] != DIGITS and file.trains_gates and not base["backbone"]:
        raise ConfigError(
            f"settings has data set {base['dataset']!r} but no backbone, so every trial would "
            "train its own; train one with train_backbone and name its run."
        )


def _check_searched(file: SweepFile, name: str) -> None:
    if name.split(".")[0] in _NOT_SEARCHED:
        raise ConfigError(f"{name} cannot be searched; it must be the same in all trials.")
    base = file.base
    try:
        get_setting(base, name)
    except (KeyError, ConfigError):
        known = [known for known in flat_settings(base) if known not in _NOT_SEARCHED]
        raise ConfigError(
            f"{name} is not a setting of {file.command}; {allowed_names(name, known)}."
        ) from None
    _check_samples(file, name)


def _check_trials(file: SweepFile) -> None:
    if not file.search:
        raise ConfigError("search is empty; name at least one setting.")
    about = f"trials is {file.trials}, but the grids have {file.combinations} combinations"
    if file.trials % file.combinations:
        raise ConfigError(f"{about}; give a multiple of that.")
    if file.trials > file.combinations and all(domain.grid for domain in file.search.values()):
        raise ConfigError(f"{about} and nothing else is searched; give {file.combinations}.")


def _check_searcher(file: SweepFile) -> None:
    about = f"searcher is {file.searcher!r}, but"
    grids = [name for name, domain in file.search.items() if domain.grid]
    if grids and file.searcher != "random":
        raise ConfigError(f"{about} {grids[0]} is a grid; take random, or make it a choice.")
    if file.searcher == "nsga2" and len(file.objective.modes) == 1:
        raise ConfigError(
            f"{about} {file.objective.name} is one objective; take tpe, or pareto_front."
        )


def _check_scheduler(file: SweepFile) -> None:
    about = f"scheduler.name is {file.scheduler.name!r}"
    if file.scheduler.name != "none" and len(file.objective.modes) > 1:
        raise ConfigError(f"{about}, which needs one objective, not pareto_front; take none.")
    if not file.scheduler.is_population:
        return
    if file.searcher != "random":
        raise ConfigError(
            f"{about}, which changes settings itself; searcher must be random, not "
            f"{file.searcher!r}."
        )
    for name, domain in file.search.items():
        if domain.kind not in ("uniform", "loguniform"):
            raise ConfigError(
                f"{about}, which changes settings during a training; {name} must be uniform or "
                "loguniform, or stand in settings."
            )
    if file.seeds > 1 or file.trials == 1:
        raise ConfigError(
            f"{about}, but there are {file.trials} trials of {file.seeds} seeds; a population "
            "needs several trials of one seed each."
        )


def _check_objective(file: SweepFile) -> None:
    if file.objective.name != "pareto_front":
        return
    if not file.trains_gates:
        raise ConfigError(
            "objective.name is 'pareto_front', but a backbone has a point for every bit width; "
            "take another objective."
        )
    samples = [{name: value} for name, domain in file.search.items() for value in domain.samples]
    if any(getattr(file.config(values), "all_budgets", False) for values in samples):
        raise ConfigError(
            "objective.name is 'pareto_front', but these gates learn all budgets and have no "
            "single point; set fixed_budget: true, or take hypervolume."
        )
