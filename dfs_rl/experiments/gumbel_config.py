"""Configuration of ``train_gumbel``: supervised training of a gate."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, ClassVar, Literal, cast

from typing_extensions import Self

from dfs_rl.agents.hyperparameters import FeatureChoice, LabelCoTrainConfig, UsualStart
from dfs_rl.agents.supervised.config import (
    SUPERVISED_METHODS,
    BlockDropConfig,
    SkipNetConfig,
    SupervisedConfig,
    SupervisedMethodName,
)
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import DEFAULT_BUDGET, GateTrainingConfig
from dfs_rl.gating.registry import GateKind
from dfs_rl.utils.config import PositiveFloat, configuration


@configuration
class TrainGumbelConfig(GateTrainingConfig):
    """Settings of ``train_gumbel``.

    Attributes:
        method: gumbel, straight-through Gumbel-softmax; dfs, as in DFS, without noise and with a
            cost term that changes its sign at the budget; skipnet, where each layer is skipped or
            runs at 32 bit, by supervision and then with reinforcement added; or blockdrop, by
            reinforcement alone, with all layers decided before the first.
        gate: A small network for each layer, or one LSTM for all; BlockDrop has a single network
            instead and accepts only ff.
        budget: Budget on the mean computation, gate, stem and head included; default 1 without
            --max-accuracy-drop. A Gumbel gate learns all budgets and is set to this one; evaluate
            and load set it to others.
        budgets: Lowest and highest budget that a Gumbel gate learns; by default from all layers at
            the lowest bits to eight times that, and from less where those save little.
        start: Initial gate: "uniform" prefers the option that is best within the budget if all
            layers run at it, "indifferent" prefers none. Default uniform for a Gumbel gate on a
            frozen backbone; the other methods start as in their papers.
        features: Observation before each layer: confidence of a linear probe of the activation, the
            default, or the channel means as well; BlockDrop reads both of the stem by default.
        training: Hyperparameters of --method.
        skipnet: Hyperparameters of SkipNet alone.
        blockdrop: Hyperparameters of BlockDrop alone.
        cotrain: Training of the backbone with --backbone-mode co-train; by default from labels
            alone, as in the paper of DFS.
    """

    KIND: ClassVar = "train_gumbel"
    DESCRIPTION: ClassVar = """\
Learn by supervision which bits each layer of a backbone uses for each image.

Examples:
  python -m dfs_rl.train_gumbel --budget 0.8
  python -m dfs_rl.train_gumbel --method dfs --dataset uoft-cs/cifar10 --backbone runs/net
  python -m dfs_rl.train_gumbel --method skipnet --budget 60"""
    MODULE: ClassVar = "dfs_rl.experiments.gumbel_training"
    CHOICES: ClassVar = {"training": ("method", SUPERVISED_METHODS)}
    FIRST: ClassVar = (
        *("method", "gate", "dataset", "backbone", "budget", "budget_unit"),
        *("max_accuracy_drop", "timesteps", "seed", "run_dir", "training"),
    )

    method: SupervisedMethodName = "gumbel"
    gate: GateKind = "ff"
    budget: PositiveFloat | None = None
    budgets: tuple[PositiveFloat, PositiveFloat] | None = None
    start: UsualStart | None = None
    features: Literal["confidence", "all"] | None = None
    training: SupervisedConfig = None  # type: ignore[assignment] # None: from ``method``
    skipnet: SkipNetConfig = field(default_factory=SkipNetConfig)
    blockdrop: BlockDropConfig = field(default_factory=BlockDropConfig)
    cotrain: LabelCoTrainConfig = field(default_factory=LabelCoTrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_blocks()
        if self.budget is None and self.max_accuracy_drop is None:
            object.__setattr__(self, "budget", DEFAULT_BUDGET)
        method = self.training
        if method.gate is not None and self.gate != type(self).gate:
            raise ConfigError(
                f"gate is {self.gate!r}, but method {self.method!r} has a gate of its own, which "
                "decides on all layers at once; leave it out."
            )
        relaxed = ", ".join(name for name, one in SUPERVISED_METHODS.items() if one.is_relaxed)
        if method.distillation and not method.is_relaxed:
            raise ConfigError(
                f"training.distillation is {method.distillation}, but method {self.method!r} "
                f"learns from labels alone; leave it at 0, or take one of {relaxed}."
            )
        if self.cotrains and not method.is_relaxed:
            raise ConfigError(
                f"backbone_mode is 'co-train', but method {self.method!r} learns on a frozen "
                f"backbone; leave it out, or take one of {relaxed}."
            )
        if self.start == "uniform" and not self.can_start_uniform:
            raise ConfigError(
                f"start is 'uniform', but method is {self.method!r} and backbone_mode is "
                f"{self.backbone_mode!r}; it requires method 'gumbel' and a frozen backbone."
            )
        if self.budgets is not None:
            self._check_budgets(*self.budgets)

    @classmethod
    def applicable(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings without those that only other methods have."""
        method = SUPERVISED_METHODS[settings.get("method", cls.method)]
        unused = {name for name in _blocks() if name != method.block}
        unused |= set() if method.all_budgets else {"val_repeats"}
        return {name: value for name, value in settings.items() if name not in unused}

    def _check_blocks(self) -> None:
        """Check that only the method has settings in the block of its own."""
        for block, owner in _blocks().items():
            given = getattr(self, block)
            usual = vars(type(given)())
            for name, value in vars(given).items():
                if block != self.training.block and value != usual[name]:
                    raise ConfigError(
                        f"{block}.{name} is {value}, but method is {self.method!r}; leave it out, "
                        f"or give --method {owner}."
                    )

    @property
    def kind(self) -> str:
        """Kind of gate to build."""
        return self.training.gate or self.gate

    @property
    def resolved_features(self) -> FeatureChoice:
        """Features that the gate reads; by default those of the method."""
        return self.features or self.training.features

    @property
    def can_start_uniform(self) -> bool:
        """True for a gate for all budgets on a frozen backbone."""
        return self.training.all_budgets and not self.cotrains

    @property
    def all_budgets(self) -> bool:
        """True if one gate learns a range of budgets."""
        return self.training.all_budgets and not self.fixed_budget

    def _check_budgets(self, lowest: float, highest: float) -> None:
        unit = "%" if self.budget_unit == "percent" else self.budget_unit
        given = f"budgets is {lowest:g} to {highest:g} {unit}"
        if not self.all_budgets:
            fixed = f"method {self.method!r}"
            if self.training.all_budgets:
                fixed = "--fixed-budget"
            raise ConfigError(f"{given}, but with {fixed} a gate learns one budget; give --budget.")
        if not lowest < highest:
            raise ConfigError(f"{given}; the first must be below the second.")
        if self.budget is not None and not lowest <= self.budget <= highest:
            raise ConfigError(
                f"budget is {self.budget:g} {unit}, but {given}; it must be among them."
            )

    def with_resolved_defaults(self) -> Self:
        """Return the configuration with its start."""
        return replace(self, start=cast("UsualStart", self.resolved_start))


def _blocks() -> dict[str, str]:
    """Return the blocks that only one method has, with its name."""
    methods = SUPERVISED_METHODS.items()
    return {method.block: name for name, method in methods if method.block is not None}
