"""Arguments of the Python API that are no settings: checks before any work, and methods."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dfs_rl.agents.hyperparameters import ALGORITHM_CONFIGS
from dfs_rl.agents.methods import METHODS
from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError, wrong_type
from dfs_rl.experiments.comparison_config import GATE_COMMANDS
from dfs_rl.experiments.config import GateRunConfig
from dfs_rl.experiments.search_config import TrainCascadeConfig
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.dataset_names import dataset_name


def given_dataset(dataset: Dataset | str | Path) -> Dataset | str:
    """Return a data set in memory, or the name or path of one as text."""
    return dataset if isinstance(dataset, Dataset) else dataset_name(dataset)


def check_callback(callback: object) -> None:
    """Raise ConfigError for a callback that cannot be called."""
    if callback is not None and not callable(callback):
        raise wrong_type("callback", callback, "are a function of a record and None")


def names_of(argument: str, names: Iterable[str]) -> list[str]:
    """Return the names of an argument, which may be a single one."""
    if not isinstance(names, Iterable):
        raise wrong_type(argument, names, "is a list of names")
    return [names] if isinstance(names, str) else list(names)


def config_of_method(name: str) -> tuple[type[GateRunConfig], dict[str, object]]:
    """Return the configuration of the command that trains a method, and what selects it there."""
    if name == "cascade":
        return TrainCascadeConfig, {}
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method is {name!r}; allowed are {', '.join(METHODS)}, cascade.")
    method = METHODS[name]
    return GATE_COMMANDS[method.command], {method.setting: name.removeprefix(method.prefix)}


def with_algorithm_block(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move hyperparameters of the algorithm that stand among the settings into their block."""
    names = {one.name for one in fields(ALGORITHM_CONFIGS[method])}
    block = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    given = rest.pop("algorithm", {})
    if not isinstance(given, Mapping) and not is_dataclass(given):
        raise wrong_type("algorithm", given, "is a block of settings")
    given = config_to_dict(given) if is_dataclass(given) else dict(given)
    twice = sorted(block.keys() & given.keys())
    if twice:
        raise ConfigError(f"{twice[0]} is given twice: as a setting and in algorithm; give one.")
    return {**rest, "algorithm": given | block} if given or block else rest
