"""Training of the gates that ``compare`` compares."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dfs_rl.data import Dataset
from dfs_rl.errors import BusyError, ConfigError, DfsRlError
from dfs_rl.evaluation.curves import COMPUTATIONS
from dfs_rl.experiments.comparison_config import CompareConfig, GateSpec, gate_specs
from dfs_rl.experiments.config import DataSettings, GateRunConfig, GateTrainingConfig
from dfs_rl.experiments.gate_run import GateRun
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.utils.config import (
    chosen_blocks,
    config_from_dict,
    config_to_dict,
    fields_from_dict,
    flat_settings,
    usual_settings,
)
from dfs_rl.utils.io import OnWait, file_lock
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder, program
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.yaml_core import read_yaml

PartT = TypeVar("PartT")

_COPIED_SETTINGS = (
    *("dataset", "backbone", "weights", "image_size", "flip", "corruptions"),
    *("cost", "latency", "budget_unit", "device", "threads"),
)
"""Settings of a comparison that every gate gets."""
_SHARED_SETTINGS = (
    *_COPIED_SETTINGS,
    *("seed", "run_dir", "timesteps", "budget", "budgets", "per_input_budget", "fixed_budget"),
    *("cost_weight", "max_accuracy_drop", "algo", "method", "gate"),
)
"""Settings that a comparison sets for all gates alike."""


def budgets_of(config: CompareConfig) -> tuple[float, ...]:
    """Return the budgets that gates are trained for."""
    return config.budgets or COMPUTATIONS


def load_extra_settings(path: Path | None, config_type: type[GateRunConfig]) -> dict[str, Any]:
    """Read settings for all gates of a command from a YAML file.

    A block whose type depends on the method stays a mapping, because it serves several methods.
    """
    if path is None:
        return {}
    data = read_yaml(path)
    extra_settings = fields_from_dict(data, config_type, str(path))
    taken = sorted(set(extra_settings) & set(_SHARED_SETTINGS))
    if taken:
        raise ConfigError(
            f"{path} sets {taken[0]}, which a comparison sets for all gates alike; leave it out "
            "there."
        )
    try:
        config_type(**config_type.applicable(extra_settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    blocks = chosen_blocks(config_type, data)
    return extra_settings | {name: data[name] for name in blocks if name in data}


def plan_jobs(
    config: CompareConfig, extra_settings: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[GateRunConfig]:
    """Return the configuration of every training of a comparison, ordered by seed.

    ``extra_settings`` are further settings by command; ``folder`` is the parent of the run folders.
    """
    jobs, specs = [], gate_specs()
    given = {name: getattr(config, name) for name in _COPIED_SETTINGS}
    copied = {name: value for name, value in given.items() if value is not None}
    for seed in range(config.seeds):
        for name in config.gates:
            spec = specs[name]
            if seed > 0 and not spec.is_seeded:
                continue
            extra = extra_settings.get(spec.config_type.KIND, {})
            shared: dict[str, Any] = {**copied, "seed": seed, **extra, **spec.settings}
            shared = spec.config_type.applicable(shared)
            for block, kind in chosen_blocks(spec.config_type, shared).items():
                if block in shared:
                    shared[block] = config_from_dict(shared[block], kind, f"{name}: {block}")
            for suffix, settings in _budget_settings(spec, config):
                run_dir = folder / f"{name}-seed{seed}{suffix}"
                jobs.append(spec.config_type(**shared, **settings, run_dir=run_dir))
    return jobs


def _budget_settings(spec: GateSpec, config: CompareConfig) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield the trainings of a gate for one seed: suffix of the name, and budget settings."""
    budgets = budgets_of(config)
    if spec.budget is not None:
        # Methods that search tables keep the length of their own command.
        is_learned = issubclass(spec.config_type, GateTrainingConfig)
        length = {"timesteps": config.timesteps} if is_learned else {}
        for budget in budgets:
            yield f"-at-{budget:g}", {spec.budget: budget, **length}
        return
    settings: dict[str, Any] = {"timesteps": config.timesteps * len(budgets)}
    if spec.config_type is TrainGumbelConfig:
        settings["budget"] = min(budgets)
        if min(budgets) < max(budgets):
            settings["budgets"] = (min(budgets), max(budgets))
    yield "", settings


def command_line(config: DataSettings) -> tuple[str, ...]:
    """Return the command line of a configuration, without ``run_dir`` and default values."""
    usual, words = flat_settings(usual_settings(config)), program(config.KIND).split()
    for name, value in flat_settings(config_to_dict(config)).items():
        if value == usual.get(name) or value is None or name == "run_dir":
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = value if isinstance(value, list | tuple) else [value]
            words += [f"--{flag}", *(str(one) for one in several)]
    return tuple(words)


def run_jobs(jobs: Sequence[GateRunConfig], dataset: Dataset) -> dict[Path, str]:
    """Run every training that is not finished, and return the failed ones with their reasons.

    A gate that fails does not stop the others. Several processes can run the same comparison at
    once: each postpones the trainings that another process has locked, and waits for them at the
    end.
    """
    failed = {}

    def train(job: tuple[int, GateRunConfig], on_wait: OnWait) -> None:
        number, config = job
        assert config.run_dir is not None
        print_status(f"[{number} of {len(jobs)}] {config.run_dir.name}")
        try:
            with file_lock(config.run_dir.parent, on_wait=lambda: None):  # avoid creating it twice
                gate_run = _create_or_open(config, config.run_dir, dataset)
            with gate_run.folder.lock(on_wait=on_wait):
                gate_run.train()
        except BusyError:
            raise
        except (DfsRlError, RuntimeError, MemoryError) as error:
            reason = failed[config.run_dir] = " ".join(str(error).split()) or type(error).__name__
            print_status(f"  failed: {reason}")

    distribute_jobs(list(enumerate(jobs, start=1)), train)
    return failed


def distribute_jobs(parts: Sequence[PartT], do: Callable[[PartT, OnWait], None]) -> None:
    """Process all parts of a job that several processes share; locked parts come last.

    ``do`` processes one part inside ``file_lock`` with the given ``on_wait``.
    """
    left = list(parts)
    while left:
        busy = []
        for part in left:
            try:
                do(part, None)
            except BusyError:  # noqa: PERF203 - a part takes minutes
                print_status("  locked by another process")
                busy.append(part)
        if len(busy) == len(left):  # all are locked: wait for one
            do(busy.pop(0), lambda: print_status("  waiting for the other process ..."))
        left = busy


def _create_or_open(config: GateRunConfig, path: Path, dataset: Dataset) -> GateRun:
    """Create a training's run folder, or open the existing one if it has these settings."""
    if not (path / RECORD).is_file():
        return GateRun.create(config, dataset, command_line(config))
    run = RunFolder.open(path, config.KIND)
    # Locations of runs and data may change; the images are checked elsewhere.
    before = replace(run.config(type(config)), dataset=config.dataset, run_dir=path)
    if before != config.with_resolved_defaults():
        raise ConfigError(
            f"{path} was trained with other settings than this comparison asks for; choose another "
            "folder."
        )
    return GateRun(config, dataset, run)
