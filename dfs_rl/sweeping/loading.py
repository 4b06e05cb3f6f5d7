"""Reading and validation of a sweep file; every error names file and line."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError
from dfs_rl.sweeping.commands import command_of
from dfs_rl.sweeping.space import get_setting, with_settings
from dfs_rl.sweeping.spec import FIRST_RETRAIN_SEED, SweepFile
from dfs_rl.utils.config import SEEDS, config_from_dict, fields_from_dict, flat_settings
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.yaml_core import YamlSettings, parse_value, read_yaml

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
    if isinstance(shared := given.get("settings", {}), dict):
        given["settings"] = with_settings(shared, settings or {})
    given.update(with_settings(given, overrides or {}))
    file = config_from_dict(given, SweepFile, str(path))
    fields_from_dict(given.part("settings"), command_of(file.command).config_type, str(path))
    for place, problems in _checks(file):
        with _located(path, given, *place):
            if problem := next(problems, None):
                raise ConfigError(problem)
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
            raise ConfigError(f"--set gives {name} twice; give it once.")
        changes[name.replace("-", "_")] = parse_value(value)
    return changes


def check_with_dataset(file: SweepFile, dataset: Dataset, path: Path) -> None:
    """Validate the searched settings against data set and backbone.

    Every choice and both ends of every range are checked.

    Raises:
        ConfigError: If a value is invalid, with file and line.
    """
    command, given = command_of(file.command), read_yaml(path)
    with _located(path, given, "settings"):
        command.check(file.config({}), dataset)
    for name, domain in file.search.items():
        for value in domain.samples():
            with _located(path, given, "search", name), _named(name, value):
                command.check(file.config({name: value}), dataset)


@contextmanager
def _located(path: Path, given: YamlSettings, *place: str) -> Iterator[None]:
    """Add file and line of the value at ``place`` to any ``ConfigError`` in the block."""
    try:
        yield
    except ConfigError as error:
        line = given.line(place)
        raise ConfigError(f"{path}{'' if line is None else f', line {line}'}: {error}") from error


@contextmanager
def _named(name: str, value: object) -> Iterator[None]:
    """Add name and value of a searched setting to any ``ConfigError`` in the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name} may be {value}, which is not allowed: {error}") from error


def _checks(file: SweepFile) -> list[tuple[tuple[str, ...], Iterator[str]]]:
    """Return the keys that lead to each value, and a check that yields what is wrong with it."""
    return [
        (("settings",), _settings_problems(file)),
        *((("search", name), _search_problems(file, name)) for name in file.search),
        (("trials",), _trials_problems(file)),
        (("searcher",), _searcher_problems(file)),
        (("scheduler", "name"), _scheduler_problems(file)),
        (("objective", "name"), _objective_problems(file)),
    ]


def _settings_problems(file: SweepFile) -> Iterator[str]:
    if "run_dir" in file.settings:
        yield "settings has run_dir, which the sweep sets for each trial; leave it out."
    base = file.base
    if base.get("workers", 1) > 1:
        yield (
            f"settings has {base['workers']} workers, but a trial is one process; leave workers "
            "out: trials run in parallel."
        )
    highest = base["seed"] + max(file.seeds, FIRST_RETRAIN_SEED + file.retrain.seeds)
    if highest > SEEDS:
        yield (
            f"settings has seed {base['seed']}, but fresh seeds start {FIRST_RETRAIN_SEED} above "
            f"it and the highest one is {SEEDS - 1}; take a lower seed."
        )
    if base["dataset"] != DIGITS and command_of(file.command).trains_gates and not base["backbone"]:
        yield (
            f"settings has data set {base['dataset']!r} but no backbone, so every trial would "
            "train its own; train one with train_backbone and name its run."
        )


def _search_problems(file: SweepFile, name: str) -> Iterator[str]:
    if name.split(".")[0] in _NOT_SEARCHED:
        yield f"{name} cannot be searched; it must be the same in all trials."
    base = file.base
    try:
        get_setting(base, name)
    except (KeyError, ConfigError):
        known = [known for known in flat_settings(base) if known not in _NOT_SEARCHED]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"the closest one is {close[0]}" if close else f"allowed are {', '.join(known)}"
        yield f"{name} is not a setting of {file.command}; {hint}."
    for value in file.search[name].samples():
        with _named(name, value):
            file.config({name: value})


def _trials_problems(file: SweepFile) -> Iterator[str]:
    if not file.search:
        yield "search is empty; name at least one setting."
    grids = file.combinations
    about = f"trials is {file.trials}, but the grids have {grids} combinations"
    if file.trials % grids:
        yield f"{about}; give a multiple of that."
    if file.trials > grids and all(domain.grid for domain in file.search.values()):
        yield f"{about} and nothing else is searched; give {grids}."


def _searcher_problems(file: SweepFile) -> Iterator[str]:
    about = f"searcher is {file.searcher!r}, but"
    grids = [name for name, domain in file.search.items() if domain.grid]
    if grids and file.searcher != "random":
        yield f"{about} {grids[0]} is a grid; take random, or make it a choice."
    if file.searcher == "nsga2" and len(file.objective.names) == 1:
        yield f"{about} {file.objective.name} is one objective; take tpe, or pareto_front."


def _scheduler_problems(file: SweepFile) -> Iterator[str]:
    about = f"scheduler.name is {file.scheduler.name!r}"
    if file.scheduler.name != "none" and len(file.objective.names) > 1:
        yield f"{about}, which needs one objective, not pareto_front; take none."
    if not file.scheduler.is_population:
        return
    if file.searcher != "random":
        yield (
            f"{about}, which changes settings itself; searcher must be random, not "
            f"{file.searcher!r}."
        )
    for name, domain in file.search.items():
        if domain.kind not in ("uniform", "loguniform"):
            yield (
                f"{about}, which changes settings during a training; {name} must be uniform or "
                "loguniform, or stand in settings."
            )
    if file.seeds > 1 or file.trials == 1:
        yield (
            f"{about}, but there are {file.trials} trials of {file.seeds} seeds; a population "
            "needs several trials of one seed each."
        )


def _objective_problems(file: SweepFile) -> Iterator[str]:
    if file.objective.name != "pareto_front":
        return
    if not command_of(file.command).trains_gates:
        yield (
            "objective.name is 'pareto_front', but a backbone has a point for every bit width; "
            "take another objective."
        )
    samples = [{name: value} for name, d in file.search.items() for value in d.samples()]
    if any(getattr(file.config(values), "all_budgets", False) for values in samples):
        yield (
            "objective.name is 'pareto_front', but these gates learn all budgets and have no "
            "single point; set fixed_budget: true, or take hypervolume."
        )
