"""Training of the gates that ``compare`` compares: settings and jobs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dfs_rl.costs import COMPUTATION
from dfs_rl.data import Dataset
from dfs_rl.errors import BusyError, ConfigError, DfsRlError
from dfs_rl.experiments import (
    supervised_training,
)
from dfs_rl.experiments.command import GateTrainingCommand
from dfs_rl.experiments.gate_kinds import GateName, GateSpec, gate_specs
from dfs_rl.experiments.gate_run import create_run, train_run
from dfs_rl.utils.config import (
    chosen_blocks,
    config_from_dict,
    config_to_dict,
    fields_from_dict,
    flat_settings,
    usual_settings,
)
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.io import OnWait, file_lock
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.yaml_core import read_yaml

PartT = TypeVar("PartT")

_SHARED_SETTINGS = (
    "dataset",
    "backbone",
    "weights",
    "image_size",
    "flip",
    "cost_model",
    "seed",
    "device",
    "threads",
    "run_dir",
    "timesteps",
    "budget",
    "budgets",
    "per_input_budget",
    "fixed_budget",
    "cost_weight",
    "algo",
    "method",
    "gate",
)
"""Settings that a comparison sets for all gates alike."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings that all gates of a comparison share.

    Attributes:
        dataset: Data set, in the form that ``load_dataset`` takes.
        backbone: Run of ``train_backbone`` or ``train_exits``, or a backbone's folder, or
            ``module:function``; ``None`` as for the commands.
        weights: Weights of a user's network.
        image_size: Image size, as for the commands.
        flip: Mirroring of training images, as for the commands.
        cost_model: Cost model of all gates.
        budgets: Budgets on the mean computation in percent.
        seeds: Number of seeds; 0 is the first.
        timesteps: Decisions to learn from for each budget; a gate for all budgets learns from the
            sum over the budgets.
        device: Device to compute on.
        threads: Number of CPU threads.
        extra_settings: Further settings of a command, by its kind.
    """

    dataset: str
    backbone: Path | None
    weights: Path | None
    image_size: int | None = None
    flip: bool | None = None
    cost_model: str = COMPUTATION
    budgets: tuple[float, ...]
    seeds: int
    timesteps: int
    device: str
    threads: int
    extra_settings: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training of a comparison.

    Attributes:
        name: Name of its folder.
        command: Command that runs it.
        config: Configuration, with its run folder.
    """

    name: str
    command: GateTrainingCommand[Any]
    config: Any


def load_extra_settings(
    path: Path | None, command: GateTrainingCommand[Any]
) -> Mapping[str, object]:
    """Read settings for all gates of a command from a YAML file.

    A block whose type depends on the method stays a mapping, because it serves several methods.

    Raises:
        ConfigError: If the settings are invalid, or a comparison sets one of them itself.
    """
    if path is None:
        return {}
    data = read_yaml(path)
    extra_settings = fields_from_dict(data, command.config_type, str(path))
    taken = sorted(set(extra_settings) & set(_SHARED_SETTINGS))
    if taken:
        raise ConfigError(
            f"{path} sets {taken[0]}, which a comparison sets for all gates alike; leave it out "
            "there."
        )
    try:
        command.config_type(**extra_settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    blocks = chosen_blocks(command.config_type, data)
    return extra_settings | {name: data[name] for name in blocks if name in data}


def plan_jobs(
    names: Sequence[GateName], benchmark: BenchmarkSettings, folder: Path
) -> list[TrainingJob]:
    """Return every training of a comparison, ordered by seed.

    Args:
        names: Names of the gates.
        benchmark: Settings that they share.
        folder: Parent of their run folders.

    Raises:
        ConfigError: If a gate's settings are invalid.
    """
    jobs, specs = [], gate_specs()
    for seed in range(benchmark.seeds):
        for name in names:
            gate_spec = specs[name]
            if seed > 0 and not gate_spec.is_seeded:
                continue
            config_type = gate_spec.command.config_type
            shared: dict[str, Any] = {
                "dataset": benchmark.dataset,
                "backbone": benchmark.backbone,
                "weights": benchmark.weights,
                "image_size": benchmark.image_size,
                "flip": benchmark.flip,
                "cost_model": benchmark.cost_model,
                "seed": seed,
                "device": benchmark.device,
                "threads": benchmark.threads,
                **benchmark.extra_settings.get(gate_spec.command.kind, {}),
                **gate_spec.settings,
            }
            for block, kind in chosen_blocks(config_type, shared).items():
                if block in shared:
                    shared[block] = config_from_dict(shared[block], kind, f"{name}: {block}")
            for label, settings in _budget_settings(gate_spec, benchmark):
                job = f"{name}-seed{seed}{label}"
                config = config_type(**shared, **settings, run_dir=folder / job)
                jobs.append(TrainingJob(name=job, command=gate_spec.command, config=config))
    return jobs


def _budget_settings(
    gate_spec: GateSpec, benchmark: BenchmarkSettings
) -> list[tuple[str, dict[str, object]]]:
    """Return the trainings of a gate for one seed: suffix of the name, and budget settings."""
    if gate_spec.budget is not None:
        length = {"timesteps": benchmark.timesteps} if gate_spec.uses_timesteps else {}
        return [
            (f"-at-{budget:g}", {gate_spec.budget: budget, **length})
            for budget in benchmark.budgets
        ]
    settings: dict[str, object] = {"timesteps": benchmark.timesteps * len(benchmark.budgets)}
    if gate_spec.command is supervised_training.COMMAND:
        lowest, highest = min(benchmark.budgets), max(benchmark.budgets)
        settings["budget"] = lowest
        if lowest < highest:
            settings["budgets"] = (lowest, highest)
    return [("", settings)]


def command_line(prog: str, config: object) -> tuple[str, ...]:
    """Return the command line of a configuration, without ``run_dir`` and default values."""
    values = flat_settings(config_to_dict(config))
    usual = flat_settings(usual_settings(config))
    words = prog.split()
    for name, value in values.items():
        if value == usual.get(name) or value is None or name == "run_dir":
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = value if isinstance(value, list | tuple) else [value]
            words += [f"--{flag}", *(str(one) for one in several)]
    return tuple(words)


def run_jobs(jobs: Sequence[TrainingJob], dataset: Dataset) -> dict[str, str]:
    """Run every training that is not finished.

    A gate that fails does not stop the others. Several processes can run the same comparison at
    once: each postpones the trainings that another process has locked, and waits for them at the
    end.

    Args:
        jobs: Trainings to run.
        dataset: Data set of the trainings.

    Returns:
        Names of the failed trainings, each with its reason.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the current training is saved.
    """
    failed = {}
    number_of = {job.name: number for number, job in enumerate(jobs, start=1)}

    def train(job: TrainingJob, on_wait: OnWait) -> None:
        print_status(f"[{number_of[job.name]} of {len(jobs)}] {job.name}")
        try:
            _train(job, dataset, on_wait)
        except BusyError:
            raise
        except (DfsRlError, RuntimeError, MemoryError) as error:
            failed[job.name] = " ".join(str(error).split()) or type(error).__name__
            print_status(f"  failed: {failed[job.name]}")

    distribute_jobs(jobs, train)
    return failed


def distribute_jobs(parts: Sequence[PartT], do: Callable[[PartT, OnWait], None]) -> None:
    """Process all parts of a job that several processes share; locked parts come last.

    Args:
        parts: Parts of the job.
        do: Function that processes one part inside ``file_lock`` with the given ``on_wait``.
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


def _train(job: TrainingJob, dataset: Dataset, on_wait: OnWait) -> None:
    """Run one training, unless it is finished."""
    device = str(resolve_device(job.config.device))
    with file_lock(job.config.run_dir.parent, on_wait=lambda: None):  # avoid creating it twice
        run = _create_or_open_run(job, dataset, device=device)
    with run.lock(on_wait=on_wait):
        train_run(job.command, job.config, dataset, run, device=device)


def _create_or_open_run(job: TrainingJob, dataset: Dataset, *, device: str) -> RunFolder:
    """Create a job's run folder, or open the existing one.

    Raises:
        ConfigError: If the existing run has other settings.
    """
    path = job.config.run_dir
    if not (path / RECORD).is_file():
        argv = command_line(job.command.prog, job.config)
        return create_run(job.command, job.config, dataset, device=device, argv=argv)
    run = RunFolder.open(path, job.command.kind)
    before = run.config(job.command.config_type)
    # Locations of runs and data may change; the images are checked elsewhere.
    if replace(
        before, dataset=job.config.dataset, run_dir=path
    ) != job.command.with_resolved_defaults(job.config):
        raise ConfigError(
            f"{path} was trained with other settings than this comparison asks for; choose another "
            "folder."
        )
    return run
