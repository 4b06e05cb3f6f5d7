"""Python API: the work of the commands as functions.

Each function writes the run folder of its command, and raises the errors of ``dfs_rl.errors``.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pandas as pd
import torch

from dfs_rl.agents.policy_conversion import Normalization, Policy
from dfs_rl.backbones import Backbone, BackboneInfo, StoredBackbone, save_backbone
from dfs_rl.costs import BudgetUnit
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.data.corruptions import corrupted
from dfs_rl.envs.task import pass_settings
from dfs_rl.errors import ConfigError, DataError, wrong_type
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.experiments import comparison, supernet_training
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.arguments import (
    check_callback,
    config_of_method,
    given_dataset,
    names_of,
    with_algorithm_block,
)
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.backbone_resolver import load_data
from dfs_rl.experiments.benchmark import command_line
from dfs_rl.experiments.comparison_config import CompareConfig, check_suits_runs
from dfs_rl.experiments.config import DataSettings, EvaluateConfig, GateRunConfig
from dfs_rl.experiments.evaluation import evaluate_run
from dfs_rl.experiments.gate_run import GateRun
from dfs_rl.experiments.policy_run import PolicyGateConfig, make_policy_run
from dfs_rl.experiments.stored_evaluation import Evaluation
from dfs_rl.gating.loading import load
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.passes import PassSettings
from dfs_rl.training.supernet import uniform_accuracies
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.device import using_threads
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import check_new
from dfs_rl.utils.trusted_import import is_constructor, trust_constructor, trusting

Callback = Callable[[Mapping[str, Any]], None]
"""Function that receives the record of each validation; an exception ends the training."""
ConfigT = TypeVar("ConfigT", bound=DataSettings | EvaluateConfig)


@dataclass(frozen=True)
class TrainedGate:
    """A gate and the run folder that it was trained in.

    Attributes:
        path: Run folder; ``dfs_rl.load``, ``evaluate`` and ``compare`` take it too.
        validation: Figures of the gate on the val split.
        points: Computation and accuracy on val in percent, one point per measured preference of a
            gate for all budgets, otherwise one.
    """

    path: Path
    validation: Mapping[str, Any]
    points: tuple[tuple[float, float], ...] = field(repr=False)

    def load(
        self,
        *,
        budget: float | None = None,
        budget_unit: BudgetUnit = "percent",
        max_accuracy_drop: float | None = None,
        device: str | torch.device = "cpu",
    ) -> GatedModel:
        """Return the network with its gate, see ``dfs_rl.load``."""
        return load(
            self.path,
            budget=budget,
            budget_unit=budget_unit,
            max_accuracy_drop=max_accuracy_drop,
            device=device,
            trust_code=True,
        )


@dataclass(frozen=True)
class Comparison:
    """Figures of several gates and their baselines.

    Attributes:
        path: Folder with ``report.html``, ``comparison.json``, ``points.csv`` and pictures.
        figures: All figures.
    """

    path: Path
    figures: ComparisonOfRuns = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per gate and budget, baseline or uniform option, as in ``points.csv``."""
        return self.figures.to_frame()


def train_backbone(
    name: str,
    dataset: Dataset | str | Path,
    *,
    callback: Callback | None = None,
    run_dir: str | Path | None = None,
    **settings: Any,  # noqa: ANN401 - fields of TrainBackboneConfig
) -> Backbone:
    """Train a backbone so that every mix of its bit options works; the run folder keeps it.

    Args:
        name: Registered name such as ``"resnet20"``, or ``"module:function"``.
        dataset: Data set, or what ``load_dataset`` takes.
        callback: Receives the record of each epoch.
        run_dir: New run folder; default ``runs/DATE-TIME-NAME``.
        settings: Settings of ``train_backbone``, for example ``bits``, ``epochs``, ``seed`` or
            ``training={"learning_rate": 0.1}``.

    Raises:
        ConfigError: If a setting is unknown or not allowed.
        DataError: If the data set cannot be read.
        TrainingError: If the loss is no longer finite.
    """
    check_callback(callback)
    dataset = given_dataset(dataset)
    config = _config(TrainBackboneConfig, dataset, backbone=name, run_dir=run_dir, **settings)
    with _working(config):
        if isinstance(dataset, str):
            dataset = load_dataset(dataset, image_size=config.image_size, flip=config.flip)
        run, stored = supernet_training.train_run(
            config,
            dataset.clean,
            command=command_line(config),
            after_log=partial(_pass_on, callback),
        )
    print_status(f"The backbone is in {run.path}.")
    return stored.backbone


def train_gate(
    backbone: Backbone | StoredBackbone | str | Path | None,
    dataset: Dataset | str | Path,
    *,
    method: str = "ppo",
    callback: Callback | None = None,
    run_dir: str | Path | None = None,
    **settings: Any,  # noqa: ANN401 - fields of the method's configuration
) -> TrainedGate:
    """Train a gate on a backbone, bitwise as the command does with these settings and threads.

    Args:
        backbone: Backbone, run folder of ``train_backbone``, or ``"module:function"``; ``None`` as
            for the commands: the included one for the digits, for other data sets one is trained.
        dataset: Data set, or what ``load_dataset`` takes.
        method: An algorithm of ``train_agent`` such as ``"ppo"``, a method of ``train_gumbel``
            such as ``"gumbel"`` or ``"dfs"``, ``"static_"`` with a method of ``train_static``, or
            ``"cascade"``.
        callback: Receives the record of each validation.
        run_dir: New run folder; default ``runs/DATE-TIME-NAME``.
        settings: Settings of the command that trains the method, for example ``budget``,
            ``timesteps`` or ``seed``. Hyperparameters of an algorithm have Stable-Baselines3's
            names, and stand beside the others or in ``algorithm``.

    Raises:
        ConfigError: If the method or a setting is unknown or not allowed.
        DataError: If the data set cannot be read, or the backbone is for other images.
        TrainingError: If a figure is no longer finite.
    """
    check_callback(callback)
    dataset = given_dataset(dataset)
    config_type, chosen = config_of_method(method)
    if config_type is TrainAgentConfig:
        settings = with_algorithm_block(method, settings)
    if isinstance(dataset, Dataset):
        settings = {"corruptions": dataset.corruptions, **settings}
    with _stored(backbone, dataset, settings) as place:
        config = _config(
            config_type, dataset, **chosen, backbone=place, run_dir=run_dir, **settings
        )
        with _working(config):
            data = _data(config, dataset)
            run = GateRun.create(config, data, command_line(config))
            run.folder = replace(run.folder, after_log=partial(_pass_on, callback))
            with run.folder.lock():
                record = run.train()
    print_status(f"The gate is in {run.folder.path}.")
    return TrainedGate(run.folder.path, record.best_on_val, record.points_on_val)


def gate_from_sb3(
    policy: Policy,
    backbone: Backbone | StoredBackbone | str | Path | None = None,
    dataset: Dataset | str | Path | None = None,
    *,
    normalize: Normalization | None = None,
    passes: PassSettings | Mapping[str, object] | int | None = None,
    run_dir: str | Path | None = None,
    **settings: Any,  # noqa: ANN401 - fields of PolicyGateConfig
) -> TrainedGate:
    """Make a gate from a policy that Stable-Baselines3 or rl_zoo3 trained on our environment.

    The gate takes the policy's deterministic actions. Backbone, data set and settings are those
    that the environment was made with. A gate for all budgets, of a ``cost_weight_range``, is
    measured on the val split.

    Args:
        policy: Algorithm, its policy, or the path of a saved algorithm. Stable-Baselines3 unpickles
            the file, so load only files that you trust.
        backbone: See ``train_gate``.
        dataset: Data set, or what ``load_dataset`` takes; ``None`` for the digits.
        normalize: ``VecNormalize`` of the training, or the path of a saved one; by default that of
            the algorithm's environment, or the one that rl_zoo3 saved beside the algorithm.
        passes: Passes of the environment.
        run_dir: New run folder; default ``runs/DATE-TIME-NAME``.
        settings: ``budget``, ``cost_weight_range``, ``exits`` and ``cost`` of the environment, and
            ``name``, the gate's name in tables.

    Raises:
        ConfigError: If the policy cannot be a gate, belongs to another environment, or a setting is
            unknown or not allowed.
        CheckpointError: If a file is missing or damaged.
        DataError: If the data set cannot be read, or the backbone is for other images.
    """
    dataset = given_dataset(DIGITS if dataset is None else dataset)
    passes = pass_settings(passes)
    with _stored(backbone, dataset, settings) as place:
        config = _config(
            PolicyGateConfig, dataset, backbone=place, run_dir=run_dir, passes=passes, **settings
        )
        with _working(config):
            run, record = make_policy_run(config, _data(config, dataset), policy, normalize)
    return TrainedGate(run.path, record.best_on_val, record.points_on_val)


def evaluate(
    gate: TrainedGate | str | Path,
    dataset: Dataset | str | Path | None = None,
    *,
    baselines: Iterable[str] | None = None,
    trust_code: bool = False,
    **settings: Any,  # noqa: ANN401 - fields of EvaluateConfig
) -> Evaluation:
    """Evaluate a gate and the baselines that it should beat, once, on the test split.

    Args:
        gate: Trained gate, or run folder of a gate or a backbone.
        dataset: Data set of the training; ``None`` reads it from where the training did.
        baselines: Names of the baselines to run, such as ``"cascade"``; ``None`` for all. A
            selection has a summary of its own.
        trust_code: True to import the constructor that a run folder names, see ``load``; that of
            a ``TrainedGate`` is trusted.
        settings: Settings of ``evaluate``, for example ``split``, ``budget`` or ``device``.

    Raises:
        ConfigError: If a setting or baseline is unknown or not allowed.
        CheckpointError: If the run has no usable backbone or gate.
        DataError: If the data set is not that of the training.
    """
    dataset = None if dataset is None else given_dataset(dataset)
    trust_code = trust_code or isinstance(gate, TrainedGate)
    config = _config(EvaluateConfig, None, run=_run_of(gate), **settings)
    with using_threads(config.threads), trusting(code=trust_code):
        return evaluate_run(config, dataset, baselines=baselines)


def compare(
    *gates: TrainedGate | str | Path,
    dataset: Dataset | str | Path | None = None,
    run_dir: str | Path | None = None,
    kinds: Iterable[str] | None = None,
    trust_code: bool = False,
    **settings: Any,  # noqa: ANN401 - fields of CompareConfig
) -> Comparison:
    """Compare trained gates with each other and their baselines, or train kinds of gates first.

    Args:
        gates: Trained gates or their run folders; none to train ``kinds``.
        dataset: Data set; with gates, only if it moved.
        run_dir: New folder for the report; default ``runs/DATE-TIME-compare``.
        kinds: Kinds of gates to train, as ``compare --gates`` takes them.
        trust_code: True to import the constructors that run folders name, see ``load``; those of
            ``TrainedGate`` are trusted.
        settings: Settings of ``compare``, for example ``budgets``, ``seeds`` or ``timesteps``.

    Raises:
        ConfigError: If a setting is unknown or not allowed.
        CheckpointError: If no run can be evaluated.
        DataError: If the gates belong to different images.
    """
    dataset = None if dataset is None else given_dataset(dataset)
    paths = [_run_of(gate) for gate in gates]
    if kinds is not None:
        settings["gates"] = names_of("kinds", kinds)
    config = _config(CompareConfig, dataset, runs=paths, run_dir=run_dir, **settings)
    check_suits_runs(config, settings)
    trained = bool(gates) and all(isinstance(gate, TrainedGate) for gate in gates)
    with _working(config, trust_code=trust_code or trained):
        folder, figures = comparison.compare(
            config,
            dataset if isinstance(dataset, Dataset) else None,
            command=("dfs_rl.compare", *map(str, paths)),
        )
    return Comparison(folder.path, figures)


def _run_of(gate: TrainedGate | str | Path) -> str | Path:
    """Return the run folder of a gate."""
    if not isinstance(gate, TrainedGate | str | Path):
        raise wrong_type("gate", gate, "are a TrainedGate and the path of a run folder")
    return gate.path if isinstance(gate, TrainedGate) else gate


def _config(
    cls: type[ConfigT],
    dataset: Dataset | str | None,
    **settings: Any,  # noqa: ANN401
) -> ConfigT:
    """Build a configuration from Python values, with the checks of the command."""
    if dataset is not None:
        settings["dataset"] = dataset.clean.name if isinstance(dataset, Dataset) else dataset
    plain = {
        name: config_to_dict(value) if is_dataclass(value) else value
        for name, value in settings.items()
        if name not in ("run_dir", "backbone") or value is not None
    }
    try:
        config = config_from_dict(json.loads(json.dumps(plain, default=str)), cls, "settings")
    except ConfigError as error:  # callers know where their settings are
        raise ConfigError(str(error).removeprefix("settings: ")) from error
    if (run_dir := getattr(config, "run_dir", None)) is not None:
        check_new(run_dir)
    return config


@contextmanager
def _stored(
    backbone: Backbone | StoredBackbone | str | Path | None,
    dataset: Dataset | str,
    settings: Mapping[str, Any],
) -> Iterator[str | None]:
    """Yield the place of a backbone for the configuration; one in memory is stored for the time."""
    if backbone is None or isinstance(backbone, str | Path):
        yield None if backbone is None else str(backbone)
        return
    if isinstance(backbone, Backbone):
        if isinstance(dataset, Dataset):
            data = dataset.clean
        else:
            size, flip = settings.get("image_size"), settings.get("flip")
            data = load_dataset(dataset, image_size=size, flip=flip)
        if (backbone.image_shape, backbone.n_classes) != (data.image_shape, data.n_classes):
            raise DataError(
                f"the backbone takes images of {list(backbone.image_shape)} and has "
                f"{backbone.n_classes} classes, but data set {data.name!r} has "
                f"{list(data.image_shape)} and {data.n_classes}."
            )
        accuracy = uniform_accuracies(backbone, data.val.to(backbone.feature_mean.device))
        backbone = StoredBackbone(backbone=backbone, info=BackboneInfo.of(data, accuracy))
    elif not isinstance(backbone, StoredBackbone):
        raise wrong_type(
            "backbone", backbone, "are a backbone, as dfs_rl.fractionalize makes, a path and None"
        )
    with TemporaryDirectory() as folder:
        save_backbone(backbone.backbone, backbone.info, folder)
        yield folder


def _pass_on(callback: Callback | None, record: Mapping[str, Any]) -> None:
    """Call ``callback`` with a record of the metrics if it is of a validation."""
    if callback is not None and record.get("kind") in ("validation", "epoch"):
        callback(record)


def _data(config: GateRunConfig, dataset: Dataset | str) -> Dataset:
    """Return the stream of images of a configuration."""
    data = load_data(config) if isinstance(dataset, str) else dataset
    return corrupted(data, config.corruptions)


@contextmanager
def _working(
    config: TrainBackboneConfig | GateRunConfig | CompareConfig, *, trust_code: bool = False
) -> Iterator[None]:
    """Within the block, trust the constructor that the caller names, and use the threads asked."""
    with using_threads(config.threads), trusting(code=trust_code):
        if is_constructor(config.backbone):
            trust_constructor(str(config.backbone))
        yield
