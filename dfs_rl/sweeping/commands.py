"""Common interface of the commands whose settings a sweep can search."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.experiments.benchmark import COMMANDS as GATE_COMMANDS
from dfs_rl.experiments.benchmark import command_line
from dfs_rl.experiments.gate_run import (
    TRAINING_FILE,
    GateTrainingCommand,
    TrainingRecord,
    create_run,
    train_run,
)
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record

if TYPE_CHECKING:
    from dfs_rl.data import Dataset
    from dfs_rl.experiments.supernet_training import SupernetSummary

CommandName = Literal["train_agent", "train_gumbel", "train_static", "train_backbone"]


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """A command that a sweep can run.

    Attributes:
        config_type: Class of its configuration.
        prog: Command line prefix of the command.
        trains_gates: True if it trains gates on a backbone, False if it trains backbones.
        check: Function that raises ``ConfigError`` for settings that are invalid for a data set;
            takes both.
        create: Function that creates the folder of a run; takes settings, data set and device.
        with_resolved_defaults: Function that returns the settings as a run stores them.
        train: Function that trains in a folder or resumes there; takes settings, data set, folder
            and device.
        points_on_val: Function that returns computation and accuracy on val of a finished run;
            takes its folder.
    """

    config_type: type
    prog: str
    trains_gates: bool
    check: "Callable[[Any, Dataset], None]"
    create: "Callable[[Any, Dataset, str], RunFolder]"
    with_resolved_defaults: Callable[[Any], Any]
    train: "Callable[[Any, Dataset, RunFolder, str], None]"
    points_on_val: Callable[[RunFolder], tuple[CurvePoint, ...]]


def command_of(name: CommandName) -> SweepCommand:
    """Return the command with this name."""
    return _backbones() if name == "train_backbone" else _gates(GATE_COMMANDS[name])


def _gates(command: GateTrainingCommand[Any]) -> SweepCommand:
    def check(config: Any, dataset: "Dataset") -> None:  # noqa: ANN401
        command.validate(config, dataset, str(resolve_device(config.device)))

    def create(config: Any, dataset: "Dataset", device: str) -> RunFolder:  # noqa: ANN401
        argv = command_line(command.prog, config)
        return create_run(command, config, dataset, device=device, argv=argv)

    def train(config: Any, dataset: "Dataset", run: RunFolder, device: str) -> None:  # noqa: ANN401
        train_run(command, config, dataset, run, device=device)

    return SweepCommand(
        config_type=command.config_type,
        prog=command.prog,
        trains_gates=True,
        check=check,
        create=create,
        with_resolved_defaults=command.with_resolved_defaults,
        train=train,
        points_on_val=lambda run: _points(run, TRAINING_FILE, TrainingRecord),
    )


def _backbones() -> SweepCommand:
    from dfs_rl.experiments import supernet_training
    from dfs_rl.experiments.backbone_config import TrainBackboneConfig

    def check(config: Any, dataset: "Dataset") -> None:  # noqa: ANN401
        supernet_training.make_trainer(config, dataset)

    def create(config: Any, dataset: "Dataset", device: str) -> RunFolder:  # noqa: ANN401, ARG001
        return RunFolder.create(
            config.run_dir,
            kind=supernet_training.KIND,
            name=config.backbone,
            config=config,
            command=command_line(supernet_training.PROG, config),
            fingerprint=dataset.fingerprint,
        )

    def train(
        config: Any,  # noqa: ANN401
        dataset: "Dataset",
        run: RunFolder,
        device: str,  # noqa: ARG001
    ) -> None:
        trainer = supernet_training.make_trainer(config, dataset)
        stored = supernet_training.train_supernet(config, trainer, dataset, run)
        supernet_training.write_summary(run, stored)

    return SweepCommand(
        config_type=TrainBackboneConfig,
        prog=supernet_training.PROG,
        trains_gates=False,
        check=check,
        create=create,
        with_resolved_defaults=lambda config: config,
        train=train,
        points_on_val=lambda run: _points(
            run, supernet_training.SUMMARY, supernet_training.SupernetSummary
        ),
    )


def _points(
    run: RunFolder, file: str, record_type: "type[TrainingRecord | SupernetSummary]"
) -> tuple[CurvePoint, ...]:
    record = read_record(run.path / file, record_type)
    return tuple(CurvePoint(*point) for point in record.points_on_val)
