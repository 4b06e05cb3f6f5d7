"""``python -m dfs_rl.train_gumbel``: learn by supervision which bits each layer of a backbone should spend on each image."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.hyperparameters import FeatureChoice, GateKind, Method, SupervisedConfig
from dfs_rl.cli import Invocation, run_command
from dfs_rl.errors import ConfigError
from dfs_rl.gate_runs import (
    DIGITS,
    VALIDATIONS,
    BackboneChoice,
    backbone_of_run,
    preview_backbone,
    say,
    train_and_evaluate,
)
from dfs_rl.runs import RunFolder

if TYPE_CHECKING:
    from agents.supervised_run import SupervisedTraining
    from dfs_rl.data import Dataset

KIND = "train_gumbel"
PROG = "python -m dfs_rl.train_gumbel"
_NAMES: dict[Method, str] = {"gumbel": "Gumbel", "dfs": "DFS"}


@dataclass(frozen=True, kw_only=True)
class TrainGumbelConfig:
    """Settings of ``train_gumbel``.

    Attributes:
        method: Straight-through Gumbel-softmax, or the gate of DFS: no noise, and a cost term that changes its sign at the budget.
        gate: A small network for each layer, or one LSTM for all.
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone, or a backbone's folder. Without it the digits use the one that ships; for other data one
            is trained first and kept for the next run.
        budget: What images may cost on average, in percent, gate, stem and head included.
        timesteps: Decisions to learn from; an image takes one per gated layer.
        seed: Same seed, same machine, same threads: same gate.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        features: What the gate looks at before each layer: how sure a linear probe of the activation is, or its channels'
            means as well.
        hidden: Width of the gate; by default 10 for an LSTM, and for networks of their own as wide as 0.05 % of the gated layers'
            MACs allows, but at least 8 and at most 32.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        eval_every: Timesteps between validations; default a twentieth of all.
        checkpoint_every: Timesteps between checkpoints; default like eval_every.
        threads: CPU threads; with 1, runs repeat to the last bit.
        precision: What the frozen backbone computes in; "auto" takes bfloat16 on GPUs.
        training: Hyperparameters.
    """

    method: Method = "gumbel"
    gate: GateKind = "ff"
    dataset: str = DIGITS
    backbone: Path | None = None
    budget: float = 1.0
    timesteps: int = 600_000
    seed: int = 0
    device: str = "auto"
    run_dir: Path | None = None
    features: FeatureChoice = "confidence"
    hidden: int | None = None
    supernet_epochs: int = 30
    eval_every: int | None = None
    checkpoint_every: int | None = None
    threads: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    training: SupervisedConfig = field(default_factory=SupervisedConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; allowed are 0 to {2**32 - 1}.")
        counts = (
            "timesteps",
            "hidden",
            "supernet_epochs",
            "threads",
            "eval_every",
            "checkpoint_every",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if not 0 < self.budget < math.inf:
            raise ConfigError(f"budget is {self.budget:g} %; it must be positive and finite.")


def plan_of(config: TrainGumbelConfig, device: str) -> "SupervisedTraining":
    """Translate the command's settings into a training."""
    import torch

    from agents.supervised_run import SupervisedTraining
    from dfs_rl.backbones import precision

    eval_every = config.eval_every or max(1, config.timesteps // VALIDATIONS)
    return SupervisedTraining(
        method=config.method,
        kind=config.gate,
        config=config.training,
        timesteps=config.timesteps,
        budget=config.budget,
        features=config.features,
        hidden=config.hidden,
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
        seed=config.seed,
        device=device,
        dtype=precision.resolve_frozen(config.precision, torch.device(device)),
        name=f"{_NAMES[config.method]} {config.gate.upper()}",
    )


def _new_run(
    config: TrainGumbelConfig, dataset: "Dataset", device: str, command: Sequence[str]
) -> RunFolder:
    """Refuse what will not do before a folder is made, then make it."""
    from agents.supervised_run import build_gate
    from dfs_rl.gating.masks import gated_budget

    backbone = preview_backbone(_choice(config, device), dataset)
    gate = build_gate(plan_of(config, device), backbone)
    gated_budget(backbone.costs, config.budget, gate_macs=gate.macs)
    name = f"{config.method}-{config.gate}-{dataset.name}"
    return RunFolder.create(config.run_dir, kind=KIND, name=name, config=config, command=command)


def _choice(config: TrainGumbelConfig, device: str) -> BackboneChoice:
    return BackboneChoice(
        dataset=config.dataset,
        folder=config.backbone,
        epochs=config.supernet_epochs,
        device=device,
        threads=config.threads,
    )


def _train(
    config: TrainGumbelConfig, dataset: "Dataset", run: RunFolder, device: str
) -> Mapping[str, Mapping[str, object]]:
    """Train the gate, or go on with it, and say how it went."""
    from agents.progress import ProgressBar
    from agents.supervised_run import train_supervised

    plan = plan_of(config, device)
    try:
        stored = backbone_of_run(run, _choice(config, device), dataset)
        total = plan.timesteps_made(stored.backbone.costs.n_layers, len(dataset.agent))
        bar = ProgressBar(total, say=say)
        result = train_supervised(plan, stored, dataset, run, bar=bar)
    except KeyboardInterrupt:
        again = f"{PROG} --resume {run.path}"
        raise KeyboardInterrupt(f"Interrupted and saved; go on with: {again}") from None
    return {"best_on_val": result.best, "images_seen": result.images_seen}


def _run(invocation: Invocation[TrainGumbelConfig]) -> None:
    import torch

    from dfs_rl.data import load_dataset
    from dfs_rl.devices import resolve_device

    config = invocation.config
    torch.set_num_threads(config.threads)
    device = str(resolve_device(config.device))
    plan_of(config, device)  # refuses bad settings
    dataset = load_dataset(config.dataset)
    run = invocation.resume or _new_run(config, dataset, device, invocation.command)
    train_and_evaluate(run, dataset, device, lambda: _train(config, dataset, run, device))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        _run,
        TrainGumbelConfig,
        prog=PROG,
        description="Learn by supervision which bits each layer of a backbone should spend on each image.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
