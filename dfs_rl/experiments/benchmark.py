"""The gates that ``compare`` trains: which there are, with which settings, and one after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dfs_rl.agents.hyperparameters import AlgorithmName, GateKind, StaticMethod
from dfs_rl.agents.supervised.config import Method
from dfs_rl.errors import BusyError, ConfigError, DfsRlError
from dfs_rl.experiments import (
    agent_training,
    cascade_training,
    static_training,
    supervised_training,
)
from dfs_rl.experiments.gate_run import GateCommand, create_run, train_run
from dfs_rl.utils.config import (
    config_to_dict,
    fields_from_dict,
    flat_settings,
    read_yaml,
    usual_settings,
)
from dfs_rl.utils.io import Waiting, exclusive
from dfs_rl.utils.logging import say
from dfs_rl.utils.run_folder import RECORD, RunFolder

if TYPE_CHECKING:
    from dfs_rl.data import Dataset

PartT = TypeVar("PartT")

GateName = Literal[
    "ppo",
    "a2c",
    "trpo",
    "recurrent-ppo",
    "dqn",
    "qrdqn",
    "maskable-ppo",
    "gumbel-ff",
    "gumbel-lstm",
    "dfs-ff",
    "dfs-lstm",
    "skipnet-ff",
    "skipnet-lstm",
    "blockdrop",
    "static-ddpg",
    "static-greedy",
]

COMMANDS: Mapping[str, GateCommand[Any]] = {
    command.kind: command
    for command in (
        agent_training.COMMAND,
        supervised_training.COMMAND,
        static_training.COMMAND,
        cascade_training.COMMAND,
    )
}
"""The commands that train gates, by the kind of their run folders."""

_OURS = (
    "dataset",
    "backbone",
    "weights",
    "image_size",
    "flip",
    "seed",
    "device",
    "threads",
    "run_dir",
    "timesteps",
    "budget",
    "budgets",
    "hard_budget",
    "fixed_budget",
    "cost_weight",
    "algo",
    "method",
    "gate",
)
"""Settings that a comparison gives to all gates alike, so that none has an advantage."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A kind of gate.

    Attributes:
        command: What trains it.
        settings: What makes it this kind.
        budget: The setting that a budget goes to; ``None`` for a gate of which one training serves all budgets.
        timesteps: Whether the length of its training is given in timesteps; its command has one of its own otherwise.
        draws: Whether another seed gives another gate.
    """

    command: GateCommand[Any]
    settings: Mapping[str, object]
    budget: Literal["budget", "hard_budget"] | None
    timesteps: bool = True
    draws: bool = True


def _agent(algorithm: AlgorithmName) -> Entrant:
    return Entrant(command=agent_training.COMMAND, settings={"algo": algorithm}, budget=None)


def _supervised(method: Method, gate: GateKind) -> Entrant:
    return Entrant(
        command=supervised_training.COMMAND,
        settings={"method": method, "gate": gate},
        # The others have one price, or flip a sign at the one budget that they have.
        budget=None if method == "gumbel" else "budget",
    )


def _static(method: StaticMethod) -> Entrant:
    return Entrant(
        command=static_training.COMMAND,
        settings={"method": method},
        budget="budget",
        timesteps=False,
        draws=method != "greedy",
    )


ENTRANTS: Mapping[GateName, Entrant] = {
    "ppo": _agent("ppo"),
    "a2c": _agent("a2c"),
    "trpo": _agent("trpo"),
    "recurrent-ppo": _agent("recurrent_ppo"),
    "dqn": _agent("dqn"),
    "qrdqn": _agent("qrdqn"),
    "maskable-ppo": Entrant(
        command=agent_training.COMMAND,
        # The budget is what holds computation down; a small price is left to break ties.
        settings={"algo": "maskable_ppo", "fixed_budget": True, "cost_weight": 0.1},
        budget="hard_budget",
    ),
    "gumbel-ff": _supervised("gumbel", "ff"),
    "gumbel-lstm": _supervised("gumbel", "lstm"),
    "dfs-ff": _supervised("dfs", "ff"),
    "dfs-lstm": _supervised("dfs", "lstm"),
    "skipnet-ff": _supervised("skipnet", "ff"),
    "skipnet-lstm": _supervised("skipnet", "lstm"),
    "blockdrop": _supervised("blockdrop", "ff"),
    "static-ddpg": _static("ddpg"),
    "static-greedy": _static("greedy"),
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all gates of a contest have in common.

    Attributes:
        dataset: The data set, as ``load_dataset`` takes it.
        backbone: Run of ``train_backbone`` or ``train_exits``, or a backbone's folder, or ``module:function``; ``None`` as for the
            commands.
        weights: Weights of a user's network.
        image_size: As for the commands.
        flip: As for the commands.
        budgets: Mean computation in percent.
        seeds: How many; 0 is the first.
        timesteps: Decisions to learn from for each budget; a gate for all budgets learns from as many as the others together.
        device: Where to compute.
        threads: CPU threads.
        given: Further settings of a command, by its kind.
    """

    dataset: str
    backbone: Path | None
    weights: Path | None
    image_size: int | None = None
    flip: bool | None = None
    budgets: tuple[float, ...]
    seeds: int
    timesteps: int
    device: str
    threads: int
    given: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training.

    Attributes:
        name: Of its folder.
        command: What trains it.
        config: Its settings, with its folder.
    """

    name: str
    command: GateCommand[Any]
    config: Any


def given_settings(path: Path | None, command: GateCommand[Any]) -> Mapping[str, object]:
    """Read settings for all gates of a command from a file.

    Raises:
        ConfigError: If the file gives something else, or what a comparison sets itself.
    """
    if path is None:
        return {}
    given = fields_from_dict(read_yaml(path), command.config_type, str(path))
    taken = sorted(set(given) & set(_OURS))
    if taken:
        raise ConfigError(
            f"{path} sets {taken[0]}, which a comparison sets for all gates alike; leave it out there."
        )
    try:
        command.config_type(**given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return given


def plan_jobs(names: Sequence[GateName], terms: Terms, folder: Path) -> list[Job]:
    """Return every training that a contest takes, seed by seed, so that all gates have one seed before any has two.

    Args:
        names: The gates.
        terms: What they have in common.
        folder: Where their folders go.

    Raises:
        ConfigError: If a gate's settings will not do.
    """
    jobs = []
    for seed in range(terms.seeds):
        for name in names:
            entrant = ENTRANTS[name]
            if seed > 0 and not entrant.draws:
                continue
            shared = {
                "dataset": terms.dataset,
                "backbone": terms.backbone,
                "weights": terms.weights,
                "image_size": terms.image_size,
                "flip": terms.flip,
                "seed": seed,
                "device": terms.device,
                "threads": terms.threads,
                **terms.given.get(entrant.command.kind, {}),
                **entrant.settings,
            }
            for label, settings in _budget_settings(entrant, terms):
                job = f"{name}-seed{seed}{label}"
                config = entrant.command.config_type(**shared, **settings, run_dir=folder / job)
                jobs.append(Job(name=job, command=entrant.command, config=config))
    return jobs


def _budget_settings(entrant: Entrant, terms: Terms) -> list[tuple[str, dict[str, object]]]:
    """Return the trainings that a gate takes for one seed: the end of their names, and what sets their budgets."""
    if entrant.budget is not None:
        length = {"timesteps": terms.timesteps} if entrant.timesteps else {}
        return [(f"-at-{budget:g}", {entrant.budget: budget, **length}) for budget in terms.budgets]
    settings: dict[str, object] = {"timesteps": terms.timesteps * len(terms.budgets)}
    if entrant.command is supervised_training.COMMAND:
        lowest, highest = min(terms.budgets), max(terms.budgets)
        settings["budget"] = lowest
        if lowest < highest:
            settings["budgets"] = (lowest, highest)
    return [("", settings)]


def command_line(prog: str, config: object) -> tuple[str, ...]:
    """Return the command line that stands for a configuration, but for the run's folder: what differs from the defaults."""
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


def hold(jobs: Sequence[Job], dataset: "Dataset") -> dict[str, str]:
    """Run every training that is not finished.

    A gate that fails does not stop the others. Several processes may hold the same contest at once: each leaves the trainings that
    another one is at for the end, and waits for them there.

    Args:
        jobs: What to train.
        dataset: Their data set.

    Returns:
        The names of those that failed, each with its reason.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the training at hand is saved.
    """
    failed = {}
    number_of = {job.name: number for number, job in enumerate(jobs, start=1)}

    def train(job: Job, waiting: Waiting) -> None:
        say(f"[{number_of[job.name]} of {len(jobs)}] {job.name}")
        try:
            _train(job, dataset, waiting)
        except BusyError:
            raise
        except (DfsRlError, RuntimeError, MemoryError) as error:
            failed[job.name] = " ".join(str(error).split()) or type(error).__name__
            say(f"  failed: {failed[job.name]}")

    share_out(jobs, train)
    return failed


def share_out(parts: Sequence[PartT], do: Callable[[PartT, Waiting], None]) -> None:
    """Do every part of a work that other processes may be at as well, what they are at last.

    Args:
        parts: The parts.
        do: Does one, inside ``exclusive`` with that ``waiting``.
    """
    left = list(parts)
    while left:
        busy = []
        for part in left:
            try:
                do(part, None)
            except BusyError:  # noqa: PERF203 - a part takes minutes
                say("  another process is at it")
                busy.append(part)
        if len(busy) == len(left):  # none was free: wait for one, and see then
            do(busy.pop(0), lambda: say("  waiting for the process that is at it ..."))
        left = busy


def _train(job: Job, dataset: "Dataset", waiting: Waiting) -> None:
    """Run one training, unless it is finished."""
    from dfs_rl.utils.device import resolve_device

    device = str(resolve_device(job.config.device))
    with exclusive(job.config.run_dir.parent, waiting=lambda: None):  # one process makes the folder
        run = _folder_of(job, dataset, device=device)
    with run.hold(waiting=waiting):
        train_run(job.command, job.config, dataset, run, device=device)


def _folder_of(job: Job, dataset: "Dataset", *, device: str) -> RunFolder:
    """Make a job's folder, or open the one that an earlier session made.

    Raises:
        ConfigError: If that one has other settings.
    """
    path = job.config.run_dir
    if not (path / RECORD).is_file():
        argv = command_line(job.command.prog, job.config)
        return create_run(job.command, job.config, dataset, device=device, argv=argv)
    run = RunFolder.open(path, job.command.kind)
    before = run.config(job.command.config_type)
    # Where runs and data are may have changed; which images they are is checked elsewhere.
    if replace(before, dataset=job.config.dataset, run_dir=path) != job.command.settle(job.config):
        raise ConfigError(
            f"{path} was trained with other settings than this comparison asks for; choose another folder."
        )
    return run
