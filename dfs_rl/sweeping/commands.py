"""Common interface of the commands whose settings a sweep can search."""

from typing import Any, Literal

from dfs_rl.data import Dataset
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.experiments import gate_run, supernet_training
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.backbone_resolver import preview_backbone
from dfs_rl.experiments.benchmark import command_line
from dfs_rl.experiments.config import program, with_percent_budgets
from dfs_rl.experiments.gate_kinds import GATE_COMMANDS
from dfs_rl.experiments.gate_run import GateRun
from dfs_rl.experiments.session import TRAINING_FILE, TrainingRecord
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record

CommandName = Literal["train_agent", "train_gumbel", "train_static", "train_backbone"]
Config = Any
"""Configuration of any of the commands."""


class GateCommand:
    """Command that trains gates on a backbone."""

    trains_gates = True

    def __init__(self, name: str) -> None:
        self.prog = program(name)
        self.config_type: type = GATE_COMMANDS[name]

    def check(self, config: Config, dataset: Dataset) -> None:
        """Raise ``ConfigError`` if the settings are invalid for the data set."""
        gate_run.validate(config, dataset)

    def with_percent_budgets(self, config: Config, dataset: Dataset) -> Config:
        """Return the settings with their budgets in percent."""
        if config.budget_unit == "percent":
            return config
        return with_percent_budgets(config, preview_backbone(config, dataset).backbone.costs)

    def with_resolved_defaults(self, config: Config) -> Config:
        """Return the settings as a run stores them; budgets are in percent."""
        return config.with_resolved_defaults()

    def create(self, config: Config, dataset: Dataset) -> RunFolder:
        """Create the folder of a run."""
        return GateRun.create(config, dataset, command_line(self.prog, config)).folder

    def train(self, config: Config, dataset: Dataset, run: RunFolder) -> None:
        """Train in a run folder, or resume there."""
        GateRun(config, dataset, run).train()

    def points_on_val(self, run: RunFolder) -> tuple[CurvePoint, ...]:
        """Return computation and accuracy on val of a finished run."""
        record = read_record(run.path / TRAINING_FILE, TrainingRecord)
        return tuple(CurvePoint(*point) for point in record.points_on_val)


class BackboneCommand:
    """Command that trains backbones; its methods are those of ``GateCommand``."""

    trains_gates = False
    prog = program(TrainBackboneConfig.KIND)
    config_type: type = TrainBackboneConfig

    def check(self, config: Config, dataset: Dataset) -> None:  # noqa: D102
        supernet_training.make_trainer(config, dataset)

    def with_percent_budgets(self, config: Config, dataset: Dataset) -> Config:  # noqa: ARG002, D102
        return config

    def with_resolved_defaults(self, config: Config) -> Config:  # noqa: D102
        return config

    def create(self, config: Config, dataset: Dataset) -> RunFolder:  # noqa: D102
        return RunFolder.create(
            config.run_dir,
            kind=config.KIND,
            name=config.backbone,
            config=config,
            command=command_line(self.prog, config),
            fingerprint=dataset.fingerprint,
        )

    def train(self, config: Config, dataset: Dataset, run: RunFolder) -> None:  # noqa: D102
        trainer = supernet_training.make_trainer(config, dataset)
        stored = supernet_training.train_supernet(config, trainer, dataset, run)
        supernet_training.write_summary(run, stored)

    def points_on_val(self, run: RunFolder) -> tuple[CurvePoint, ...]:  # noqa: D102
        summary = run.path / supernet_training.SUMMARY
        record = read_record(summary, supernet_training.SupernetSummary)
        return tuple(CurvePoint(*point) for point in record.points_on_val)


SweepCommand = GateCommand | BackboneCommand


def command_of(name: CommandName) -> SweepCommand:
    """Return the command with this name."""
    return BackboneCommand() if name == "train_backbone" else GateCommand(name)
