"""Runs of the commands whose settings a sweep can search."""

from typing import Any, Literal

from dfs_rl.data import Dataset
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.experiments import gate_run, supernet_training
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.backbone_resolver import preview_backbone
from dfs_rl.experiments.benchmark import command_line
from dfs_rl.experiments.budgets import with_percent_budgets
from dfs_rl.experiments.config import create_run
from dfs_rl.experiments.session import TrainingRecord
from dfs_rl.utils.run_folder import TRAINING_FILE, RunFolder
from dfs_rl.utils.run_records import read_record

CommandName = Literal["train_agent", "train_gumbel", "train_static", "train_backbone"]
Config = Any
"""Configuration of any of the commands."""


def check(config: Config, dataset: Dataset) -> None:
    """Raise ``ConfigError`` if the settings are invalid for the data set."""
    if isinstance(config, TrainBackboneConfig):
        supernet_training.make_trainer(config, dataset)
    else:
        gate_run.validate(config, dataset)


def budgets_in_percent(config: Config, base: Config, dataset: Dataset) -> Config:
    """Return settings with their budgets, if they have any, in percent; ``base`` has a backbone."""
    if getattr(config, "budget_unit", "percent") == "percent":
        return config
    return with_percent_budgets(config, preview_backbone(base, dataset).backbone.costs)


def create(config: Config, dataset: Dataset) -> RunFolder:
    """Create the folder of a run."""
    command = command_line(config)
    if not isinstance(config, TrainBackboneConfig):
        return gate_run.GateRun.create(config, dataset, command).folder
    return create_run(config, config.backbone, command=command, fingerprint=dataset.fingerprint)


def train(config: Config, dataset: Dataset, run: RunFolder) -> None:
    """Train in a run folder, or resume there."""
    if isinstance(config, TrainBackboneConfig):
        trainer = supernet_training.make_trainer(config, dataset)
        stored = supernet_training.train_supernet(config, trainer, dataset, run)
        supernet_training.write_summary(run, stored)
    else:
        gate_run.GateRun(config, dataset, run).train()


def points_on_val(run: RunFolder) -> tuple[CurvePoint, ...]:
    """Return computation and accuracy on val of a finished run."""
    record: TrainingRecord | supernet_training.SupernetSummary
    if run.kind == TrainBackboneConfig.KIND:
        summary = run.path / supernet_training.SUMMARY
        record = read_record(summary, supernet_training.SupernetSummary)
    else:
        record = read_record(run.path / TRAINING_FILE, TrainingRecord)
    return tuple(CurvePoint(*point) for point in record.points_on_val)
