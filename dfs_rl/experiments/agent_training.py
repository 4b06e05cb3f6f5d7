"""Configuration of ``train_agent``: training of a gate by reinforcement learning."""

import math
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dfs_rl.agents.cotraining_config import CoTrainConfig
from dfs_rl.agents.hyperparameters import (
    ALGORITHM_CONFIGS,
    AlgorithmConfig,
    AlgorithmName,
    FeatureChoice,
    OnPolicyConfig,
    Start,
    resolved_group_size,
)
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.command import GateTrainingCommand
from dfs_rl.experiments.config import GateTrainingConfig
from dfs_rl.gating.reward import RewardTerms, RewardWeights
from dfs_rl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt, configuration

if TYPE_CHECKING:
    from dfs_rl.gating.budget_conditioning import CostWeightRange

_DEFAULT_COST_WEIGHT_RANGE = (0.1, 30.0)
"""Default range of the cost weight."""
DEFAULT_COST_WEIGHT = RewardWeights.cost
"""Default cost weight; about 0.8 % computation on the digits."""


@configuration
class TrainAgentConfig(GateTrainingConfig):
    """Settings of ``train_agent``.

    Attributes:
        algo: Learning algorithm. maskable_ppo keeps every image within --per-input-budget, during
            training too; the others pay a penalty for computation above it, and are bounded by it
            after deployment.
        budget: Budget on the mean computation in percent, gate, stem and head included. The gate
            learns all budgets and is set to this one; evaluate and load set it to others.
        cost_weight: Cost weight that the gate is set to, instead of a budget: with 1, running
            everything in full precision costs 1. Default 10, or the geometric mean of
            --cost-weight-range if 10 is outside.
        cost_weight_range: Lowest and highest cost weight that the gate learns; each image draws
            one.
        per_input_budget: Upper bound on the computation of every single image in percent, gate,
            stem and head included.
        timesteps: Number of decisions to learn from; an image takes one per gated layer that it
            reaches.
        group_size: Rollouts of one image that share a baseline; 1 disables groups. Default 1 for a
            gate that starts uniform, otherwise 8; dqn and qrdqn learn from single decisions and
            accept only 1.
        num_envs: Number of parallel environments, repeated images included.
        features: Observation before each layer: confidence of a linear probe of the activation, or
            the channel means as well.
        exits: Use of the backbone's exits, see train_exits; --no-exits runs every image to the end,
            which dqn, qrdqn and co-training require.
        start: Initial policy: "uniform" prefers the option with the highest reward at the cost
            weight if all layers run at it, "indifferent" prefers none. Default uniform; indifferent
            for dqn and qrdqn, co-training and gates that are initialized from another gate.
        init_gate: Run with the gate to initialize from, of the same kind and on the same backbone;
            for example a run of train_gumbel.
        precision: Number format of the frozen backbone; "auto" selects bfloat16 on GPUs.
        reward: Terms of the reward.
        algorithm: Hyperparameters of --algo.
        cotrain: Training of the backbone with --backbone-mode co-train.
    """

    CHOICES: ClassVar = {"algorithm": ("algo", ALGORITHM_CONFIGS)}
    FIRST: ClassVar = (
        *("algo", "dataset", "backbone", "budget", "cost_weight"),
        *("timesteps", "seed", "run_dir", "algorithm"),
    )

    algo: AlgorithmName = "ppo"
    budget: PositiveFloat | None = None
    cost_weight: NonNegativeFloat | None = None
    cost_weight_range: tuple[PositiveFloat, PositiveFloat] = _DEFAULT_COST_WEIGHT_RANGE
    per_input_budget: PositiveFloat | None = None
    timesteps: PositiveInt = 1_200_000
    group_size: PositiveInt | None = None
    num_envs: PositiveInt = 512
    features: FeatureChoice = "confidence"
    exits: bool = True
    init_gate: Path | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    reward: RewardTerms = field(default_factory=RewardTerms)
    algorithm: AlgorithmConfig = None  # type: ignore[assignment] # None: from ``algo``
    cotrain: CoTrainConfig = field(default_factory=CoTrainConfig)

    def __post_init__(self) -> None:
        self._complete_blocks()
        group = self.resolved_group_size
        if self.num_envs % group:
            default = ", as it is by default here" if self.group_size is None else ""
            raise ConfigError(
                f"num_envs is {self.num_envs} and group_size is {group}{default}; group_size must "
                "divide num_envs."
            )
        if self.budget is not None and self.cost_weight is not None:
            raise ConfigError(
                f"budget is {self.budget:g} and cost_weight is {self.cost_weight:g}; give one of "
                "them."
            )
        if self.budget is not None and self.fixed_budget:
            raise ConfigError(
                f"budget is {self.budget:g}, but with --fixed-budget the gate learns for one cost "
                "weight; give --cost-weight."
            )
        if self.fixed_budget and self.cost_weight_range != _DEFAULT_COST_WEIGHT_RANGE:
            lowest, highest = self.cost_weight_range
            raise ConfigError(
                f"cost_weight_range is {lowest:g} to {highest:g}, but with --fixed-budget the gate "
                "learns for one cost weight; give --cost-weight."
            )
        if self.init_gate is not None and not isinstance(self.algorithm, OnPolicyConfig):
            raise ConfigError(
                f"init_gate is {self.init_gate}, but algo is {self.algo!r}, which learns action "
                "values; take an algorithm with an actor."
            )
        if self.start == "uniform" and not self._can_start_uniform:
            raise ConfigError(
                f"start is 'uniform', but algo is {self.algo!r}, backbone_mode is "
                f"{self.backbone_mode!r} and init_gate is {self.init_gate}; it requires an "
                "algorithm with an actor, a frozen backbone and no initial gate."
            )
        if self.algorithm.needs_budget and self.per_input_budget is None:
            raise ConfigError(
                f"algo is {self.algo!r}, which requires a per-input budget, but per_input_budget "
                "is None; give one in percent, or take another algorithm."
            )

    @property
    def backbone_source(self) -> Path | None:
        """Place of the backbone, by default that of the initial gate."""
        return self.backbone or self.init_gate

    @property
    def uses_exits(self) -> bool:
        """True if the gate may take a backbone's exits."""
        return self.exits

    @property
    def _can_start_uniform(self) -> bool:
        has_actor = isinstance(self.algorithm, OnPolicyConfig)
        return has_actor and self.backbone_mode == "frozen" and self.init_gate is None

    @property
    def resolved_start(self) -> Start:
        """Start of the gate if it is not initialized from another gate."""
        return self.start or ("uniform" if self._can_start_uniform else "indifferent")

    @property
    def resolved_group_size(self) -> int:
        """Number of rollouts of one image that share a baseline."""
        return resolved_group_size(self.algorithm, self.group_size, start=self.resolved_start)

    @property
    def all_budgets(self) -> bool:
        """True if one gate learns a range of cost weights."""
        return not self.fixed_budget


def cost_weight_range_of(config: TrainAgentConfig) -> "CostWeightRange | None":
    """Return the range of cost weights to learn, ``None`` with a fixed cost weight."""
    from dfs_rl.gating.budget_conditioning import CostWeightRange

    if not config.all_budgets:
        return None
    return CostWeightRange(lowest=config.cost_weight_range[0], highest=config.cost_weight_range[1])


def _default_cost_weight(config: TrainAgentConfig) -> float:
    """Return the cost weight to use if none is given.

    It is ``DEFAULT_COST_WEIGHT``, or the geometric mean of a range that excludes it.
    """
    lowest, highest = config.cost_weight_range
    within = not config.all_budgets or lowest <= DEFAULT_COST_WEIGHT <= highest
    return DEFAULT_COST_WEIGHT if within else math.sqrt(lowest * highest)


def reward_weights_of(config: TrainAgentConfig) -> RewardWeights:
    """Return the reward weights of a configuration."""
    cost = _default_cost_weight(config) if config.cost_weight is None else config.cost_weight
    return RewardWeights(**vars(config.reward), cost=cost)


def _with_resolved_defaults(config: TrainAgentConfig) -> TrainAgentConfig:
    """Return the configuration with its resolved start and group size.

    A gate that is initialized from another gate has no start.
    """
    resolved_start = config.resolved_start if config.init_gate is None else None
    return replace(config, start=resolved_start, group_size=config.resolved_group_size)


COMMAND = GateTrainingCommand(
    kind="train_agent",
    description="""Train a gate by reinforcement learning to pick the bits of each layer and image.

Examples:
  python -m dfs_rl.train_agent --budget 0.8
  python -m dfs_rl.train_agent --dataset uoft-cs/cifar10 --backbone runs/net --timesteps 3000000
  python -m dfs_rl.train_agent --algo maskable_ppo --per-input-budget 1.5 --cost-weight 0.1""",
    config_type=TrainAgentConfig,
    module="dfs_rl.experiments.gate_training",
    with_resolved_defaults=_with_resolved_defaults,
)
