"""Configuration of ``train_agent``: training of a gate by reinforcement learning."""

import math
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from typing_extensions import Self

from dfs_rl.agents.hyperparameters import (
    ALGORITHM_CONFIGS,
    AlgorithmConfig,
    AlgorithmName,
    FeatureChoice,
    OnPolicyConfig,
    Start,
    resolved_group_size,
)
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import Flip, GateTrainingConfig, Passes
from dfs_rl.gating.reward import RewardTerms, RewardWeights
from dfs_rl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt, configuration
from dfs_rl.utils.constants import AnswerRule, Precision

if TYPE_CHECKING:
    from dfs_rl.costs import CostTable

_DEFAULT_PASSES = 3
_DEFAULT_COST_WEIGHT_RANGE = (0.1, 30.0)
"""Default range of the cost weight; its default, 10, is about 0.8 % computation on the digits."""
_LATENCY_COST_WEIGHT_RANGE = (0.01, 3.0)
"""The same for the cost latency, which 8 bit lowers far less than computation."""
_CostWeightRange = Annotated[tuple[PositiveFloat, PositiveFloat], tyro.conf.DisallowNone]


@configuration
class TrainAgentConfig(GateTrainingConfig):
    """Settings of ``train_agent``.

    Attributes:
        algo: Learning algorithm. maskable_ppo keeps every image within --per-input-budget, during
            training too; the others pay a penalty for computation above it, and are bounded by it
            after deployment.
        budget: Budget on the mean computation, gate, stem and head included. The gate learns all
            budgets and is set to this one; evaluate and load set it to others. Where only
            the tuned or fitted rules can hold it, they ship.
        cost_weight: Cost weight that the gate is set to, instead of a budget: with 1, running
            everything in full precision costs 1. Default 10, or the geometric mean of
            --cost-weight-range if 10 is outside.
        cost_weight_range: Lowest and highest cost weight that the gate learns; each image draws
            one. Default 0.1 to 30, with the cost latency 0.01 to 3.
        per_input_budget: Upper bound on the computation of every single image, gate, stem and head
            included.
        timesteps: Number of decisions to learn from; an image takes one per gated layer that it
            reaches.
        group_size: Rollouts of one image that share a baseline; 1 disables groups. Default 8 for a
            gate that starts indifferent, otherwise 1; dqn, qrdqn and several passes accept only 1.
        num_envs: Number of parallel environments, repeated images included.
        passes: Largest number of passes of an image, 1 to 5; at the end of each but the last, the
            gate answers or runs again. Rules over as many passes are tuned first. Default 3; 1 for
            algorithms without an actor or with a memory, co-training, backbones with exits,
            per-input budgets, groups, other starts and initial gates.
        mirrored: Use of mirror images in further passes; by default if the training of the backbone
            mirrored images.
        answer: Answer after several passes: the mean of their probabilities, that of the last pass
            or that of the surest one; default the one of the tuned rules.
        features: Observation before each layer: confidence of a linear probe of the activation, the
            channel means as well, or none. Default confidence; none with several passes, whose
            answers say more of an image.
        exits: Use of the backbone's exits, see train_exits; --no-exits runs every image to the end,
            which dqn, qrdqn and co-training require.
        start: Initial policy: "rule" follows the tuned rules over several passes and ships them, or
            fitted rules that are better, unless the gate is significantly better on val; "uniform"
            prefers the option with the highest reward at the cost weight if all layers run at it,
            "indifferent" prefers none. Default rule with several passes, else uniform; indifferent
            for dqn and qrdqn, co-training, per-input budgets over several passes, and gates that
            are initialized from another gate.
        init_gate: Run with the gate to initialize from, of the same kind and on the same backbone;
            for example a run of train_gumbel.
        precision: Number format of the frozen backbone; "auto" selects bfloat16 on GPUs.
        reward: Terms of the reward.
        algorithm: Hyperparameters of --algo.
    """

    KIND: ClassVar = "train_agent"
    DESCRIPTION: ClassVar = """\
Train a gate by reinforcement learning to pick the bits of each layer and image.

Examples:
  python -m dfs_rl.train_agent --budget 0.8
  python -m dfs_rl.train_agent --dataset uoft-cs/cifar10 --backbone runs/net --timesteps 3000000
  python -m dfs_rl.train_agent --algo maskable_ppo --per-input-budget 1.5 --cost-weight 0.1"""
    MODULE: ClassVar = "dfs_rl.experiments.gate_training"
    CHOICES: ClassVar = {"algorithm": ("algo", ALGORITHM_CONFIGS)}
    FIRST: ClassVar = (
        *("algo", "dataset", "backbone", "budget", "budget_unit", "cost_weight"),
        *("max_accuracy_drop", "timesteps", "seed", "run_dir", "algorithm"),
    )

    algo: AlgorithmName = "ppo"
    budget: PositiveFloat | None = None
    cost_weight: NonNegativeFloat | None = None
    cost_weight_range: _CostWeightRange | None = None
    per_input_budget: PositiveFloat | None = None
    timesteps: PositiveInt = 1_200_000
    group_size: PositiveInt | None = None
    num_envs: PositiveInt = 512
    passes: Passes | None = None
    mirrored: Flip = None
    answer: AnswerRule | None = None
    features: FeatureChoice | None = None
    exits: bool = True
    init_gate: Path | None = None
    precision: Precision = "auto"
    reward: RewardTerms = field(default_factory=RewardTerms)
    algorithm: AlgorithmConfig = None  # type: ignore[assignment] # None: from ``algo``

    def __post_init__(self) -> None:
        super().__post_init__()
        measured = self.cost == LATENCY
        usual = _LATENCY_COST_WEIGHT_RANGE if measured else _DEFAULT_COST_WEIGHT_RANGE
        if self.cost_weight_range is None:
            object.__setattr__(self, "cost_weight_range", usual)
        self._check_passes()
        group = self.resolved_group_size
        if self.num_envs % group:
            default = ", as it is by default here" if self.group_size is None else ""
            raise ConfigError(
                f"num_envs is {self.num_envs} and group_size is {group}{default}; group_size must "
                "divide num_envs."
            )
        self._check_budget()
        lowest, highest = self.cost_weights
        if self.fixed_budget and (lowest, highest) != usual:
            raise ConfigError(
                f"cost_weight_range is {lowest:g} to {highest:g}, but with --fixed-budget the gate "
                "learns for one cost weight; give --cost-weight."
            )
        if self.init_gate is not None and not isinstance(self.algorithm, OnPolicyConfig):
            raise ConfigError(
                f"init_gate is {self.init_gate}, but algo is {self.algo!r}, which learns action "
                "values; take an algorithm with an actor."
            )
        if self.start == "uniform" and not self.can_start_uniform:
            raise ConfigError(
                f"start is 'uniform', but algo is {self.algo!r}, backbone_mode is "
                f"{self.backbone_mode!r} and init_gate is {self.init_gate}; it requires an "
                "algorithm with an actor, a frozen backbone and no initial gate."
            )
        if self.start == "rule" and not self.can_start_from_rule:
            raise ConfigError(
                f"start is 'rule', but passes is {self.resolved_passes}, algo is {self.algo!r}, "
                f"init_gate is {self.init_gate} and per_input_budget is {self.per_input_budget}; "
                "it requires 2 passes or more, an algorithm with an actor, no initial gate and no "
                "per-input budget."
            )
        if self.algorithm.needs_budget and self.per_input_budget is None:
            raise ConfigError(
                f"algo is {self.algo!r}, which requires a per-input budget, but per_input_budget "
                "is None; give one, or take another algorithm."
            )

    @classmethod
    def applicable(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings without those that only gates for all budgets have."""
        unused = {"val_repeats"} if settings.get("fixed_budget") else set()
        return {name: value for name, value in settings.items() if name not in unused}

    @property
    def backbone_source(self) -> Path | None:
        """Place of the backbone, by default that of the initial gate."""
        return self.backbone or self.init_gate

    @property
    def can_start_uniform(self) -> bool:
        """True for an algorithm with an actor, a frozen backbone and no initial gate."""
        has_actor = isinstance(self.algorithm, OnPolicyConfig)
        return has_actor and not self.cotrains and self.init_gate is None

    @property
    def resolved_passes(self) -> int:
        """Largest number of passes: the setting, or several where nothing speaks against it."""
        if self.passes is not None:
            return self.passes
        plain = self.start in (None, "rule") and self.group_size in (None, 1)
        alone = self.init_gate is None and self.per_input_budget is None
        return _DEFAULT_PASSES if self._learns_passes and plain and alone else 1

    @property
    def _learns_passes(self) -> bool:
        """True for an algorithm with an actor and no memory, and a frozen backbone."""
        has_actor = isinstance(self.algorithm, OnPolicyConfig) and self.algorithm.gate == "ff"
        return has_actor and not self.cotrains

    @property
    def can_start_from_rule(self) -> bool:
        """True if the gate can start from rules over several passes."""
        several = self.resolved_passes > 1 and self.per_input_budget is None
        return several and isinstance(self.algorithm, OnPolicyConfig) and self.init_gate is None

    @property
    def resolved_start(self) -> Start:
        """Start of the gate: the setting, or a rule or uniform where that is possible."""
        if self.start is None and self.resolved_passes > 1:
            return "rule" if self.can_start_from_rule else "indifferent"
        return super().resolved_start

    @property
    def resolved_features(self) -> FeatureChoice:
        """Features that the gate reads: the setting, or its default."""
        return self.features or ("none" if self.resolved_passes > 1 else "confidence")

    def _check_budget(self) -> None:
        """Check that a budget has an effect, and that nothing else has the same one."""
        bound = self.per_input_budget
        if self.budget is not None and bound is not None and self.budget > bound:
            raise ConfigError(
                f"budget is {self.budget:g} and per_input_budget is {bound:g}, which bounds the "
                "mean too; give a lower budget, or leave it out."
            )
        if self.budget is not None and self.fixed_budget:
            raise ConfigError(
                f"budget is {self.budget:g}, but with --fixed-budget the gate learns for one cost "
                "weight; give --cost-weight."
            )

    def _check_passes(self) -> None:
        """Check that the algorithm can learn several passes, and that only they have settings."""
        if self.resolved_passes == 1:
            for name in ("mirrored", "answer"):
                value = getattr(self, name)
                if value:
                    raise ConfigError(
                        f"{name} is {str(value).lower()}, but passes is 1; it needs 2 or more."
                    )
            if self.resolved_features == "none":
                raise ConfigError(
                    "features is none, but passes is 1; a gate that sees nothing of its image is a "
                    "static bit table, see train_static."
                )
            return
        if not self._learns_passes:
            raise ConfigError(
                f"passes is {self.resolved_passes}, but algo is {self.algo!r} and backbone_mode is "
                f"{self.backbone_mode!r}; several passes require an algorithm with an actor and no "
                "memory, and a frozen backbone."
            )
        if self.start == "uniform" or (self.group_size or 1) > 1:
            raise ConfigError(
                f"passes is {self.resolved_passes}, but start is {self.start!r} and group_size is "
                f"{self.group_size}; with several passes a gate starts from a rule or indifferent, "
                "and group_size is 1."
            )

    @property
    def resolved_group_size(self) -> int:
        """Number of rollouts of one image that share a baseline."""
        if self.resolved_passes > 1 and self.group_size is None:
            return 1
        return resolved_group_size(self.algorithm, self.group_size, start=self.resolved_start)

    @property
    def cost_weights(self) -> tuple[float, float]:
        """Lowest and highest cost weight."""
        assert self.cost_weight_range is not None, "the default is filled in"
        return self.cost_weight_range

    @property
    def reward_weights(self) -> RewardWeights:
        """Weights of the reward.

        The default cost weight is that of ``RewardWeights``, or the geometric mean of a range that
        excludes it.
        """
        lowest, highest = self.cost_weights
        cost = self.cost_weight
        if cost is None:
            cost = RewardWeights.cost
            if not lowest <= cost <= highest:
                cost = math.sqrt(lowest * highest)
        return RewardWeights(**vars(self.reward), cost=cost)

    @property
    def uses_exits(self) -> bool:
        """True if the gate may take a backbone's exits."""
        return self.exits

    def for_backbone(self, costs: "CostTable") -> Self:
        """Return the configuration with a single pass by default on a network with exits."""
        exits_decide = self.passes is None and self.exits and bool(costs.exits)
        return replace(self, passes=1) if exits_decide else self

    def with_resolved_defaults(self) -> Self:
        """Return the configuration with its start and group size.

        A gate that is initialized from another gate has no start.
        """
        start = self.resolved_start if self.init_gate is None else None
        return replace(
            self,
            start=start,
            group_size=self.resolved_group_size,
            passes=self.resolved_passes,
            features=self.resolved_features,
        )
