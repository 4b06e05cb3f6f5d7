"""``python -m dfs_rl.train_agent``: learn, by reinforcement, which bits each layer of a backbone should spend on each image."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    AlgorithmName,
    CoTrainConfig,
    FeatureChoice,
    PPOConfig,
)
from dfs_rl.cli import Invocation, run_command
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.runs import RunFolder

if TYPE_CHECKING:
    from agents.training import GateTraining
    from dfs_rl.backbones import BackboneInfo, ResNet, StoredBackbone
    from dfs_rl.data import Dataset
    from dfs_rl.gating.reward import RewardWeights
    from dfs_rl.train_backbone import TrainBackboneConfig

KIND = "train_agent"
DIGITS = "digits"
PROG = "python -m dfs_rl.train_agent"
_TRAINING = "training.json"
VALIDATIONS = 20
"""How often a run is validated where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What an image is worth, beside ``--cost-weight``.

    Attributes:
        accuracy: Reward of a correct prediction.
        log_likelihood: Weight of the label's clipped log-likelihood, a term in [-1, 0] that tells near misses from far ones.
        log_likelihood_floor: Where it is clipped, below 0.
        overshoot: Price of each fraction of computation above --budget.
        cost_timing: Charge each choice when it is made, or all at the end.
    """

    accuracy: float = 0.5
    log_likelihood: float = 0.5
    log_likelihood_floor: float = -3.0
    overshoot: float = 50.0
    cost_timing: Literal["step", "terminal"] = "step"


@dataclass(frozen=True, kw_only=True)
class TrainAgentConfig:
    """Settings of ``train_agent``.

    Attributes:
        algo: Learning algorithm.
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone, or a backbone's folder. Without it the digits use the one that ships; for other data one
            is trained first and kept for the next run.
        cost_weight: Price of computation: 1 is the price of running everything in full precision. Useful between 1 and 100.
        budget: Upper bound on computation in percent, stem and head included.
        timesteps: Decisions to learn from; an image takes one per gated layer.
        seed: Same seed, same machine, same threads: same gate.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        images_per_group: Rollouts of one image that share a baseline; 1 turns this off.
        num_envs: Images that walk side by side, repeats included.
        features: What the gate looks at before each layer: how sure a linear probe of the activation is, or its channels'
            means as well.
        hidden: Width of the gate's network at each layer; default as wide as 0.05 % of the gated layers' MACs
            allows, but at least 8 and at most 32.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        backbone_mode: Leave the backbone as it is, or train it under the gate's choices as well.
        eval_every: Timesteps between validations; default a twentieth of all.
        checkpoint_every: Timesteps between checkpoints; default like eval_every.
        threads: CPU threads; with 1, runs repeat to the last bit.
        precision: What the frozen backbone computes in; "auto" takes bfloat16 on GPUs.
        reward: What an image is worth.
        ppo: Hyperparameters of PPO.
        a2c: Hyperparameters of A2C.
        cotrain: How the backbone learns with --backbone-mode co-train.
    """

    algo: AlgorithmName = "ppo"
    dataset: str = DIGITS
    backbone: Path | None = None
    cost_weight: float = 10.0
    budget: float | None = None
    timesteps: int = 600_000
    seed: int = 0
    device: str = "auto"
    run_dir: Path | None = None
    images_per_group: int = 8
    num_envs: int = 512
    features: FeatureChoice = "confidence"
    hidden: int | None = None
    supernet_epochs: int = 30
    backbone_mode: Literal["frozen", "co-train"] = "frozen"
    eval_every: int | None = None
    checkpoint_every: int | None = None
    threads: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    cotrain: CoTrainConfig = field(default_factory=CoTrainConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; allowed are 0 to {2**32 - 1}.")
        counts = (
            "timesteps",
            "num_envs",
            "hidden",
            "supernet_epochs",
            "threads",
            "images_per_group",
            "eval_every",
            "checkpoint_every",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError(
                f"budget is {self.budget:g} %; it must be positive and finite, or left out for no bound."
            )
        if self.num_envs % self.images_per_group:
            raise ConfigError(
                f"num_envs is {self.num_envs} and images_per_group is {self.images_per_group}; images_per_group must divide num_envs."
            )


def weights_of(config: TrainAgentConfig) -> "RewardWeights":
    """Return the reward weights that a configuration asks for."""
    from dfs_rl.gating.reward import RewardWeights

    reward = config.reward
    return RewardWeights(
        accuracy=reward.accuracy,
        log_likelihood=reward.log_likelihood,
        log_likelihood_floor=reward.log_likelihood_floor,
        cost=config.cost_weight,
        overshoot=reward.overshoot,
        cost_timing=reward.cost_timing,
    )


def plan_of(config: TrainAgentConfig, device: str) -> "GateTraining":
    """Translate the command's settings into a training."""
    import torch

    from agents.training import GateTraining
    from dfs_rl.backbones import precision

    algorithms: dict[AlgorithmName, AlgorithmConfig] = {"ppo": config.ppo, "a2c": config.a2c}
    eval_every = config.eval_every or max(1, config.timesteps // VALIDATIONS)
    return GateTraining(
        algorithm=algorithms[config.algo],
        timesteps=config.timesteps,
        weights=weights_of(config),
        budget=config.budget,
        images_per_group=config.images_per_group,
        num_envs=config.num_envs,
        features=config.features,
        hidden=config.hidden,
        cotrain=config.cotrain if config.backbone_mode == "co-train" else None,
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
        seed=config.seed,
        device=device,
        dtype=precision.resolve_frozen(config.precision, torch.device(device)),
        name=config.algo.upper(),
    )


def check_match(info: "BackboneInfo", backbone: "ResNet", dataset: "Dataset", source: str) -> None:
    """Refuse a backbone that was made for other data.

    Raises:
        DataError: If image shape, classes or images differ.
    """
    if backbone.image_shape != dataset.image_shape:
        raise DataError(
            f"backbone {source} takes images of {list(backbone.image_shape)} (channels, height, width), but those of data set "
            f"{dataset.name!r} are {list(dataset.image_shape)}."
        )
    if info.class_names != dataset.class_names:
        raise DataError(
            f"backbone {source} tells the classes of {info.dataset!r} apart ({_few(info.class_names)}), but data set "
            f"{dataset.name!r} has {_few(dataset.class_names)}."
        )
    if info.fingerprint != dataset.fingerprint:
        raise DataError(
            f"backbone {source} was trained on other images or splits than those of data set {dataset.name!r} (fingerprint "
            f"{info.fingerprint}, not {dataset.fingerprint}); a gate needs images that its backbone has not seen."
        )


def find_backbone(config: TrainAgentConfig, dataset: "Dataset", device: str) -> "StoredBackbone":
    """Load the backbone that a configuration names, or the one for its data set, which is trained first if need be.

    Raises:
        CheckpointError: If it cannot be read.
        DataError: If it was made for other data.
    """
    from dfs_rl.backbones import PRETRAINED_DIGITS, load_stored_backbone

    if _needs_supernet(config):
        return _own_supernet(config, dataset, device)
    folder = config.backbone or PRETRAINED_DIGITS
    stored = load_stored_backbone(folder)
    check_match(stored.info, stored.backbone, dataset, str(folder))
    return stored


def _needs_supernet(config: TrainAgentConfig) -> bool:
    return config.backbone is None and config.dataset != DIGITS


def _supernet_config(config: TrainAgentConfig, device: str) -> "TrainBackboneConfig":
    """What is trained where no backbone is given: the defaults of ``train_backbone``."""
    from dfs_rl.train_backbone import TrainBackboneConfig

    return TrainBackboneConfig(
        dataset=config.dataset,
        epochs=config.supernet_epochs,
        device=device,
        threads=config.threads,
    )


def _own_supernet(config: TrainAgentConfig, dataset: "Dataset", device: str) -> "StoredBackbone":
    """Return the supernet with ``train_backbone``'s defaults for a data set: an earlier run's, or a new one."""
    import hashlib

    from dfs_rl import train_backbone
    from dfs_rl.backbones import load_stored_backbone
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.config import config_to_dict
    from dfs_rl.files import exclusive
    from dfs_rl.gating.model import BACKBONE_FOLDER
    from dfs_rl.runs.folder import RECORD

    wanted = _supernet_config(config, device)
    settings = config_to_dict(wanted)
    relevant = {
        name: value
        for name, value in settings.items()
        if name not in ("dataset", "device", "threads", "run_dir")
    }
    digest = hashlib.sha256(
        repr((dataset.fingerprint, sorted(relevant.items()))).encode()
    ).hexdigest()[:8]
    path = Path("runs") / f"supernet-{dataset.name}-{digest}"
    with exclusive(
        path,
        waiting=lambda: _say(f"Another process trains the backbone in {path}; waiting for it."),
    ):
        if (path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
            _say(f"No backbone given: using the one trained before in {path}.")
            stored = load_stored_backbone(path)
            check_match(stored.info, stored.backbone, dataset, str(path))
            return stored
        trainer = train_backbone.make_trainer(wanted, dataset)
        if (path / RECORD).is_file():
            _say(f"No backbone given: going on with the one begun in {path}.")
            folder = RunFolder.open(path, train_backbone.KIND)
        else:
            _say(
                f"No backbone given: training {wanted.backbone} on {dataset.name!r} first, into {path}; "
                "the next run finds it there."
            )
            folder = RunFolder.create(
                path, kind=train_backbone.KIND, name="supernet", config=wanted, command=(PROG,)
            )
        return train_backbone.train_supernet(wanted, trainer, dataset, folder)


def _new_run(
    config: TrainAgentConfig, dataset: "Dataset", device: str, command: Sequence[str]
) -> RunFolder:
    """Refuse what will not do before a folder is made, then make it."""
    from agents.deploy import gate_shape
    from dfs_rl.gating.learned import LayerwiseGate
    from dfs_rl.gating.masks import gated_budget
    from dfs_rl.train_backbone import build

    if _needs_supernet(config):
        backbone = build(_supernet_config(config, device), dataset)  # untrained, it costs the same
    else:
        backbone = find_backbone(config, dataset, device).backbone
    if len(backbone.options) == 1:
        raise ConfigError(
            f"backbone {config.backbone} runs at {backbone.options[0]} bit only; a gate needs two options to choose from."
        )
    if config.budget is not None:
        shape = gate_shape(backbone, features=config.features, hidden=config.hidden)
        gate = LayerwiseGate(
            shape.feature_sizes,
            backbone.options,
            feature_macs=backbone.feature_macs,
            hidden=shape.hidden,
        )
        gated_budget(backbone.costs, config.budget, gate_macs=gate.macs)
    name = f"{config.algo}-{dataset.name}"
    return RunFolder.create(config.run_dir, kind=KIND, name=name, config=config, command=command)


def _train(config: TrainAgentConfig, dataset: "Dataset", run: RunFolder, device: str) -> None:
    """Train the gate, or go on with it, and record how it went in ``training.json``."""
    from agents.progress import Progress
    from agents.training import train_gate
    from dfs_rl.backbones import load_stored_backbone, save_backbone
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER
    from dfs_rl.runs import write_json

    plan = plan_of(config, device)
    folder = run.path / BACKBONE_FOLDER
    try:
        if (folder / STRUCTURE_FILE).is_file():
            stored = load_stored_backbone(folder)
            check_match(stored.info, stored.backbone, dataset, str(folder))
        else:
            stored = find_backbone(config, dataset, device)
            if plan.cotrain is not None:  # what its rivals need, see evaluate
                save_backbone(stored.backbone, stored.info, run.path / BEFORE_FOLDER)
            save_backbone(stored.backbone, stored.info, folder)
        n_layers = stored.backbone.costs.n_layers
        progress = Progress(plan.steps_made(n_layers), say=_say)
        result = train_gate(
            plan, stored, dataset, run, report=progress.report, watchers=(progress,)
        )
    except KeyboardInterrupt:
        again = f"{PROG} --resume {run.path}"
        raise KeyboardInterrupt(f"Interrupted and saved; go on with: {again}") from None
    record = {"best_on_val": result.best, "images_seen": result.images_seen}
    write_json(run.path / _TRAINING, record)
    _say(
        f"Kept the gate of step {result.best['timesteps']:,}: the latest within one standard error of "
        "the highest mean reward on the val split."
    )


def _run(invocation: Invocation[TrainAgentConfig]) -> None:
    import torch

    from dfs_rl.data import load_dataset
    from dfs_rl.devices import resolve_device
    from dfs_rl.evaluate import evaluate_run
    from dfs_rl.files import exclusive
    from dfs_rl.reporting.table import summary_text

    config = invocation.config
    torch.set_num_threads(config.threads)
    device = str(resolve_device(config.device))
    plan_of(config, device)  # refuses bad settings
    dataset = load_dataset(config.dataset)
    run = invocation.resume or _new_run(config, dataset, device, invocation.command)
    with exclusive(run.path):
        if (run.path / _TRAINING).is_file():
            _say(f"The training in {run.path} is finished.")
        else:
            _train(config, dataset, run, device)
        evaluation = evaluate_run(
            run,
            dataset=dataset,
            device=device,
            progress=lambda text: _say(f"Evaluating: {text} ..."),
        )
    sys.stdout.write(summary_text(evaluation.summary))
    sys.stdout.flush()
    _say(f"Everything is in {run.path}; pictures:")
    for picture in sorted(run.plots_dir.glob("*.png")):
        _say(f"  {picture}")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... {len(names)} in all" if len(names) > 4 else shown  # noqa: PLR2004 - enough to recognise them


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        _run,
        TrainAgentConfig,
        prog=PROG,
        description="Learn which bits each layer of a backbone should spend on each image.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
