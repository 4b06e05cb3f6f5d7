"""``python -m dfs_rl.train_gumbel``: learn by supervision which bits each layer of a backbone should spend on each image."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from dfs_rl.agents.cotraining_config import BackboneMode, CoTrainConfig
from dfs_rl.agents.hyperparameters import FeatureChoice, GateKind, Start
from dfs_rl.agents.supervised.config import (
    BlockDropConfig,
    Method,
    RelaxedMethod,
    SkipNetConfig,
    SupervisedConfig,
)
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.backbone_resolver import DIGITS, Flip
from dfs_rl.experiments.gate_run import GateCommand
from dfs_rl.utils.config import Count, Positive, Seed, check_values


@dataclass(frozen=True, kw_only=True)
class TrainGumbelConfig:
    """Settings of ``train_gumbel``.

    Attributes:
        method: Straight-through Gumbel-softmax; the gate of DFS: no noise, and a cost term that changes its sign at the budget; that of
            SkipNet: each layer is skipped or runs at 32 bit, by supervision and then with reinforcement on top; or that of BlockDrop:
            reinforcement alone, and all layers are decided on before the first.
        gate: A small network for each layer, or one LSTM for all; BlockDrop has one network that is neither, and leaves this at ff.
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a network of yours.
            Without it the digits use the one that ships; for other data one is trained first and kept for the next run.
            Exits that it has, see train_exits, are left out: these gates walk every image to the end.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Resize each image's shorter side to so many pixels and crop the centre; by default as the backbone was trained.
        flip: Mirror half of the images left and right where a backbone is trained; by default as the backbone was trained.
        budget: What images may cost on average, in percent, gate, stem and head included. A Gumbel gate learns all budgets and is
            turned to this one; evaluate and load turn it to others.
        budgets: Lowest and highest budget that such a gate learns; by default from all layers at the lowest bits to eight times that.
        fixed_budget: Learn for --budget alone; all but a Gumbel gate always do.
        timesteps: Decisions to learn from; an image takes one per gated layer.
        seed: Same seed, same machine, same threads: same gate.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        features: What the gate looks at before each layer: how sure a linear probe of the activation is, the default, or its
            channels' means as well, which BlockDrop, with the stem's alone, does by default.
        hidden: Width of the gate; by default 10 for an LSTM, and for networks of their own as wide as 0.05 % of the gated layers'
            MACs allows, but at least 8 and at most 32.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        start: Where the gate begins: at the option that is worth most within its budget where all layers run at it, or indifferent
            between all options. By default uniform for a Gumbel gate on a frozen backbone; the others begin as their papers say.
        backbone_mode: Leave the backbone as it is, or train it together with a Gumbel gate, or with one of DFS once that executes
            everything, as its paper does.
        eval_every: Timesteps between validations; default a twentieth of all.
        val_walks: How often each val image is walked in a validation, every time for another budget; more tell gates for all budgets
            apart more surely, where val is small.
        checkpoint_every: Timesteps between checkpoints; default like --eval-every.
        threads: CPU threads; with 1, runs repeat to the last bit.
        training: Hyperparameters of all methods.
        skipnet: Those of SkipNet alone.
        blockdrop: Those of BlockDrop alone.
        cotrain: How the backbone learns with --backbone-mode co-train; by default from labels alone, as in the paper of DFS.
    """

    method: Method = "gumbel"
    gate: GateKind = "ff"
    dataset: str = DIGITS
    backbone: Path | None = None
    weights: Path | None = None
    image_size: Count | None = None
    flip: Flip = None
    budget: Positive = 1.0
    budgets: tuple[Positive, Positive] | None = None
    fixed_budget: bool = False
    timesteps: Count = 600_000
    seed: Seed = 0
    device: str = "auto"
    run_dir: Path | None = None
    features: FeatureChoice | None = None
    hidden: Count | None = None
    supernet_epochs: Count = 30
    start: Start | None = None
    backbone_mode: BackboneMode = "frozen"
    eval_every: Count | None = None
    val_walks: Count = 1
    checkpoint_every: Count | None = None
    threads: Count = 1
    training: SupervisedConfig = field(default_factory=SupervisedConfig)
    skipnet: SkipNetConfig = field(default_factory=SkipNetConfig)
    blockdrop: BlockDropConfig = field(default_factory=BlockDropConfig)
    cotrain: CoTrainConfig = field(
        default_factory=lambda: CoTrainConfig(distillation=0.0, full_precision=0.0)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.method == "blockdrop" and self.gate != "ff":
            raise ConfigError(
                f"gate is {self.gate!r}, but method 'blockdrop' decides on all layers at once and remembers nothing; leave it out."
            )
        if self.training.distillation and self.method not in get_args(RelaxedMethod):
            raise ConfigError(
                f"training.distillation is {self.training.distillation}, but method {self.method!r} learns from labels alone; leave it "
                f"at 0, or take one of {', '.join(get_args(RelaxedMethod))}."
            )
        if self.backbone_mode == "co-train" and self.method not in get_args(RelaxedMethod):
            raise ConfigError(
                f"backbone_mode is 'co-train', but method {self.method!r} learns on a frozen backbone; leave it out, or take one of "
                f"{', '.join(get_args(RelaxedMethod))}."
            )
        if self.start == "uniform" and not self._can_begin_uniform:
            raise ConfigError(
                f"start is 'uniform', which method {self.method!r} with backbone_mode {self.backbone_mode!r} cannot: it takes method "
                "'gumbel' and a frozen backbone."
            )
        if self.budgets is not None:
            self._check_budgets(*self.budgets)

    @property
    def _can_begin_uniform(self) -> bool:
        return self.method == "gumbel" and self.backbone_mode == "frozen"

    @property
    def begins(self) -> Start:
        """Where the gate begins."""
        return self.start or ("uniform" if self._can_begin_uniform else "indifferent")

    @property
    def all_budgets(self) -> bool:
        """Whether one gate learns many budgets."""
        return self.method == "gumbel" and not self.fixed_budget

    def _check_budgets(self, lowest: float, highest: float) -> None:
        if not self.all_budgets:
            raise ConfigError(
                f"budgets is {lowest:g} to {highest:g} %, but this gate learns one budget alone; give --budget, or leave out what fixes it."
            )
        if not lowest < highest:
            raise ConfigError(f"budgets is {lowest:g} to {highest:g} %; the lower one comes first.")
        if not lowest <= self.budget <= highest:
            raise ConfigError(
                f"budget is {self.budget:g} %, which is not among the budgets that the gate learns, {lowest:g} % to {highest:g} %."
            )


COMMAND = GateCommand(
    kind="train_gumbel",
    description="Learn by supervision which bits each layer of a backbone should spend on each image.",
    config_type=TrainGumbelConfig,
    module="dfs_rl.experiments.gumbel_training",
    settle=lambda config: replace(config, start=config.begins),
)
