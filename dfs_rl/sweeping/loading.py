"""Reading and validation of a sweep file; every error names file and line."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.commands import command_of
from dfs_rl.sweeping.objective import check_is_no_training_metric
from dfs_rl.sweeping.space import get_setting, with_settings
from dfs_rl.sweeping.spec import FIRST_RETRAIN_SEED, SweepFile
from dfs_rl.utils.config import (
    SEEDS,
    YamlSettings,
    config_from_dict,
    fields_from_dict,
    flat_settings,
    parse_value,
    read_yaml,
)
from dfs_rl.utils.constants import DIGITS

_NOT_SEARCHED = (
    *("seed", "run_dir", "dataset", "image_size", "flip"),
    *("backbone", "device", "threads", "workers"),
)
"""Settings that must be the same in all trials, or that the sweep sets itself."""


def load_sweep_file(
    path: Path,
    settings: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> SweepFile:
    """Read and validate a sweep.

    Args:
        path: YAML file of the sweep.
        settings: Additional settings of the command, by dotted name.
        overrides: Values of the sweep itself that replace those in the file, by dotted name.

    Raises:
        ConfigError: If a name is unknown, or a value has the wrong type, is out of range or
            conflicts with another one.
    """
    given = read_yaml(path)
    where = ErrorLocations(str(path), given)
    objective = given.get("objective")
    if isinstance(objective, dict):
        with where.line("objective", "name"):
            check_is_no_training_metric(objective.get("name"))
    shared = given.get("settings", {})
    if isinstance(shared, dict):
        given["settings"] = with_settings(shared, settings or {})
    given.update(with_settings(given, overrides or {}))
    file = config_from_dict(given, SweepFile, str(path))
    fields_from_dict(given.part("settings"), command_of(file.command).config_type, str(path))
    check(file, where)
    return file


def parse_overrides(words: Sequence[str]) -> dict[str, object]:
    """Parse settings in the form NAME=VALUE, with values in YAML syntax.

    Raises:
        ConfigError: If an entry has another form, or two entries have the same name.
    """
    changes: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {word} is no setting; write NAME=VALUE.")
        if name in changes:
            raise ConfigError(f"--set gives {name} twice; once is allowed.")
        changes[name.replace("-", "_")] = parse_value(value)
    return changes


class ErrorLocations:
    """Adds file and line to errors about values in a YAML file.

    Args:
        source: Path of the file, for messages.
        given: Parsed content of the file.
    """

    def __init__(self, source: str, given: YamlSettings) -> None:
        self._source = source
        self._given = given

    @contextmanager
    def line(self, *place: str) -> Iterator[None]:
        """Add file and line of the value at ``place`` to any ``ConfigError`` in the block."""
        try:
            yield
        except ConfigError as error:
            number = self._given.line(place)
            where = self._source if number is None else f"{self._source}, line {number}"
            raise ConfigError(f"{where}: {error}") from error


def check(file: SweepFile, where: ErrorLocations) -> None:
    """Validate the sweep.

    Raises:
        ConfigError: If settings are invalid or conflict, with file and line.
    """
    with where.line("settings"):
        _check_settings(file)
    for name in file.search:
        with where.line("search", name):
            _check_search(file, name)
    with where.line("trials"):
        _check_trials(file)
    with where.line("searcher"):
        _check_searcher(file)
    with where.line("scheduler", "name"):
        _check_scheduler(file)
    with where.line("objective", "name"):
        _check_objective(file)


def check_with_dataset(file: SweepFile, dataset: Dataset, source: Path) -> None:
    """Validate the searched settings against data set and backbone.

    Every choice and both ends of every range are checked.

    Raises:
        ConfigError: If a value is invalid, with file and line.
    """
    command = command_of(file.command)
    where = ErrorLocations(str(source), read_yaml(source))
    with where.line("settings"):
        command.check(file.config({}), dataset)
    for name, domain in file.search.items():
        for value in domain.samples():
            with where.line("search", name), _about(f"{name} may be {value}"):
                command.check(file.config({name: value}), dataset)


@contextmanager
def _about(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}, which is not allowed: {error}") from error


def _check_settings(file: SweepFile) -> None:
    if "run_dir" in file.settings:
        raise ConfigError(
            "settings has run_dir, which the sweep gives to each trial; leave it out."
        )
    base = file.base
    if base.get("workers", 1) > 1:
        raise ConfigError(
            f"settings has {base['workers']} workers, but a trial is one process; leave workers "
            "out, more trials run beside each other."
        )
    highest = max(base["seed"] + file.seeds, base["seed"] + FIRST_RETRAIN_SEED + file.retrain.seeds)
    if highest > SEEDS:
        raise ConfigError(
            f"settings has seed {base['seed']}, but fresh seeds begin {FIRST_RETRAIN_SEED} above "
            f"it and there are none above {SEEDS - 1}; "
            "take a lower one."
        )
    if base["dataset"] != DIGITS and command_of(file.command).trains_gates and not base["backbone"]:
        raise ConfigError(
            f"settings has data set {base['dataset']!r} but no backbone; train one with "
            "train_backbone and name its run, or every trial "
            "would train its own."
        )


def _check_search(file: SweepFile, name: str) -> None:
    if name.split(".")[0] in _NOT_SEARCHED:
        raise ConfigError(f"{name} cannot be searched; trials must agree in it.")
    base = file.base
    try:
        get_setting(base, name)
    except KeyError as error:
        known = [known for known in flat_settings(base) if known not in _NOT_SEARCHED]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"the closest one is {close[0]}" if close else f"allowed are {', '.join(known)}"
        raise ConfigError(f"{name} is not a setting of {file.command}; {hint}.") from error
    for value in file.search[name].samples():
        with _about(f"{name} may be {value}"):
            file.config({name: value})


def _check_trials(file: SweepFile) -> None:
    if not file.search:
        raise ConfigError("search is empty; name at least one setting.")
    grids = file.combinations
    if file.trials % grids:
        raise ConfigError(
            f"trials is {file.trials}, but the grids have {grids} combinations; give a multiple of "
            "that."
        )
    if file.trials > grids and all(domain.grid for domain in file.search.values()):
        raise ConfigError(
            f"trials is {file.trials}, but the grids have {grids} combinations and nothing else is "
            f"searched; give {grids}."
        )


def _check_searcher(file: SweepFile) -> None:
    grids = [name for name, domain in file.search.items() if domain.grid]
    if grids and file.searcher != "random":
        raise ConfigError(
            f"searcher is {file.searcher!r}, but {grids[0]} is a grid; take random, or make it a "
            "choice."
        )
    if file.searcher == "nsga2" and len(file.objective.names) == 1:
        raise ConfigError(
            f"searcher is 'nsga2', but {file.objective.name} is one objective; take tpe, or "
            "objective pareto_front."
        )


def _check_scheduler(file: SweepFile) -> None:
    name = file.scheduler.name
    if name != "none" and len(file.objective.names) > 1:
        raise ConfigError(
            f"scheduler.name is {name!r}, which needs one objective to go by; take none, or "
            "another objective than pareto_front."
        )
    if not file.scheduler.is_population:
        return
    if file.searcher != "random":
        raise ConfigError(
            f"scheduler.name is {name!r}, which changes settings itself; searcher must be random, "
            f"not {file.searcher!r}."
        )
    stiff = [setting for setting, domain in file.search.items() if not domain.is_continuous]
    if stiff:
        raise ConfigError(
            f"scheduler.name is {name!r}, which changes settings in mid-training; {stiff[0]} must "
            "be uniform or loguniform, or stand in "
            "settings."
        )
    if file.seeds > 1 or file.trials == 1:
        raise ConfigError(
            f"scheduler.name is {name!r}, but there are {file.trials} trials of {file.seeds} "
            "seeds; a population needs several trials "
            "of one seed each."
        )


def _check_objective(file: SweepFile) -> None:
    if len(file.objective.names) == 1:
        return
    if not command_of(file.command).trains_gates:
        raise ConfigError(
            "objective.name is 'pareto_front', but a backbone has a point for every bit width; "
            "take another objective."
        )
    for name, domain in file.search.items():
        for value in domain.samples():
            if getattr(file.config({name: value}), "all_budgets", False):
                raise ConfigError(
                    "objective.name is 'pareto_front', but these gates learn all budgets and have "
                    "no single point; set fixed_budget: true, "
                    "or take hypervolume."
                )
