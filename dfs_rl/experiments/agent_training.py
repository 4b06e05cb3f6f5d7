"""``python -m dfs_rl.train_agent``: learn, by reinforcement, which bits each layer of a backbone should spend on each image."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dfs_rl.agents.cotraining_config import BackboneMode, CoTrainConfig
from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    AlgorithmName,
    DQNConfig,
    FeatureChoice,
    MaskablePPOConfig,
    OnPolicyConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    Start,
    TRPOConfig,
    rollouts_per_image,
)
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.backbone_resolver import (
    DIGITS,
    Flip,
)
from dfs_rl.experiments.gate_run import GateCommand
from dfs_rl.gating.reward import CostTiming, RewardWeights
from dfs_rl.utils.config import Count, Positive, PositiveOrZero, Seed, check_values

if TYPE_CHECKING:
    from dfs_rl.gating.budget_conditioning import PriceRange

_COST_WEIGHTS = (0.1, 30.0)
"""From where 8 bit pay to where 2 bit do."""
COST_WEIGHT = RewardWeights.cost
"""Where nothing else is asked for: on the digits it comes to about 0.8 %."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What an image is worth, beside ``--cost-weight``.

    Attributes:
        accuracy: Reward of a correct prediction.
        log_likelihood: Weight of the label's clipped log-likelihood, a term in [-1, 0] that tells near misses from far ones.
        log_likelihood_floor: Where it is clipped, below 0.
        overshoot: Price of each fraction of an image's computation above --hard-budget.
        cost_timing: Charge each choice when it is made, or all at the end.
    """

    accuracy: PositiveOrZero = RewardWeights.accuracy
    log_likelihood: PositiveOrZero = RewardWeights.log_likelihood
    log_likelihood_floor: Annotated[float, Field(lt=0)] = RewardWeights.log_likelihood_floor
    overshoot: PositiveOrZero = RewardWeights.overshoot
    cost_timing: CostTiming = RewardWeights.cost_timing

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class TrainAgentConfig:
    """Settings of ``train_agent``.

    Attributes:
        algo: Learning algorithm. maskable_ppo never spends more than --hard-budget on an image, not even while it learns; the others
            pay for what is above it, and are held to it once the gate is deployed.
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a network of yours.
            Without it the digits use the one that ships; for other data one is trained first and kept for the next run.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Resize each image's shorter side to so many pixels and crop the centre; by default as the backbone was trained.
        flip: Mirror half of the images left and right where a backbone is trained; by default as the backbone was trained.
        budget: What images may cost on average, in percent, gate, stem and head included. The gate learns all budgets and is turned
            to this one; evaluate and load turn it to others.
        cost_weight: Price of computation that the gate is turned to instead: 1 is the price of running everything in full
            precision; default 10, or the middle of --cost-weights that leave it out.
        cost_weights: Lowest and highest price that the gate learns; each image draws one.
        fixed_budget: Learn for --cost-weight alone.
        hard_budget: Upper bound on the computation of every single image in percent, gate, stem and head included.
        timesteps: Decisions to learn from; an image takes one per gated layer that it comes to.
        seed: Same seed, same machine, same threads: same gate.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        images_per_group: Rollouts of one image that share a baseline; 1 turns this off. Default 1 for a gate that begins
            uniform, otherwise 8; dqn and qrdqn learn from single decisions and take 1 alone.
        num_envs: Images that walk side by side, repeats included.
        features: What the gate looks at before each layer: how sure a linear probe of the activation is, or its channels'
            means as well.
        hidden: Width of the gate's network at each layer; default as wide as 0.05 % of the gated layers' MACs
            allows, but at least 8 and at most 32. An LSTM is 10 wide.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        exits: Let images leave where the backbone has exits, see train_exits; --no-exits walks all of them to the end, as dqn, qrdqn
            and co-training must.
        start: Where the gate begins: at the option that is worth most at its price of computation where all layers run at it, or
            indifferent between all options. By default uniform; dqn and qrdqn, which have no actor, co-training, under which options
            change their worth, and whatever goes on from another gate cannot.
        init_gate: Run whose gate to go on from, of the same kind on the same backbone; for example one of train_gumbel.
        backbone_mode: Leave the backbone as it is, or train it under the gate's choices as well.
        eval_every: Timesteps between validations; default a twentieth of all.
        val_walks: How often each val image is walked in a validation, every time for another budget; more tell gates for all budgets
            apart more surely, where val is small.
        checkpoint_every: Timesteps between checkpoints; default like --eval-every.
        threads: CPU threads; with 1, runs repeat to the last bit.
        precision: What the frozen backbone computes in; "auto" takes bfloat16 on GPUs.
        reward: What an image is worth.
        ppo: Hyperparameters of PPO.
        a2c: Hyperparameters of A2C.
        maskable_ppo: Hyperparameters of PPO within a hard budget.
        trpo: Hyperparameters of TRPO.
        recurrent_ppo: Hyperparameters of PPO for one LSTM over all layers.
        dqn: Hyperparameters of DQN.
        qrdqn: Hyperparameters of quantile-regression DQN.
        cotrain: How the backbone learns with --backbone-mode co-train.
    """

    algo: AlgorithmName = "ppo"
    dataset: str = DIGITS
    backbone: Path | None = None
    weights: Path | None = None
    image_size: Count | None = None
    flip: Flip = None
    budget: Positive | None = None
    cost_weight: PositiveOrZero | None = None
    cost_weights: tuple[Positive, Positive] = _COST_WEIGHTS
    fixed_budget: bool = False
    hard_budget: Positive | None = None
    timesteps: Count = 1_200_000
    seed: Seed = 0
    device: str = "auto"
    run_dir: Path | None = None
    images_per_group: Count | None = None
    num_envs: Count = 512
    features: FeatureChoice = "confidence"
    hidden: Count | None = None
    supernet_epochs: Count = 30
    exits: bool = True
    start: Start | None = None
    init_gate: Path | None = None
    backbone_mode: BackboneMode = "frozen"
    eval_every: Count | None = None
    val_walks: Count = 1
    checkpoint_every: Count | None = None
    threads: Count = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    maskable_ppo: MaskablePPOConfig = field(default_factory=MaskablePPOConfig)
    trpo: TRPOConfig = field(default_factory=TRPOConfig)
    recurrent_ppo: RecurrentPPOConfig = field(default_factory=RecurrentPPOConfig)
    dqn: DQNConfig = field(default_factory=DQNConfig)
    qrdqn: QRDQNConfig = field(default_factory=QRDQNConfig)
    cotrain: CoTrainConfig = field(default_factory=CoTrainConfig)

    def __post_init__(self) -> None:
        check_values(self)
        group = self.rollouts_per_image
        if self.num_envs % group:
            default = ", as it is by default here" if self.images_per_group is None else ""
            raise ConfigError(
                f"num_envs is {self.num_envs} and images_per_group is {group}{default}; images_per_group must divide num_envs."
            )
        if self.budget is not None and self.cost_weight is not None:
            raise ConfigError(
                f"budget is {self.budget:g} and cost_weight is {self.cost_weight:g}; each says where to turn the gate to, so give one."
            )
        if self.budget is not None and self.fixed_budget:
            raise ConfigError(
                f"budget is {self.budget:g}, but with --fixed-budget the gate learns for one price of computation; give --cost-weight."
            )
        if self.fixed_budget and self.cost_weights != _COST_WEIGHTS:
            lowest, highest = self.cost_weights
            raise ConfigError(
                f"cost_weights is {lowest:g} to {highest:g}, but with --fixed-budget the gate learns for one price; give --cost-weight."
            )
        if self.init_gate is not None and not isinstance(self.algorithm, OnPolicyConfig):
            raise ConfigError(
                f"init_gate is {self.init_gate}, but {self.algorithm.label} learns what options are worth, which the scores of a gate do "
                "not tell; take an algorithm with an actor."
            )
        if self.start == "uniform" and not self._can_begin_uniform:
            raise ConfigError(
                f"start is 'uniform', which algo {self.algo!r} with backbone_mode {self.backbone_mode!r} and init_gate {self.init_gate} "
                "cannot: it takes an algorithm with an actor, a frozen backbone and no gate to go on from."
            )
        if self.algorithm.needs_budget and self.hard_budget is None:
            raise ConfigError(
                f"algo is {self.algo!r}, which keeps every image within a hard budget, but hard_budget is None; give one in percent, "
                "or take another algorithm."
            )

    @property
    def _can_begin_uniform(self) -> bool:
        has_actor = isinstance(self.algorithm, OnPolicyConfig)
        return has_actor and self.backbone_mode == "frozen" and self.init_gate is None

    @property
    def begins(self) -> Start:
        """Where the gate begins, if it does not go on from another one."""
        return self.start or ("uniform" if self._can_begin_uniform else "indifferent")

    @property
    def rollouts_per_image(self) -> int:
        """How many rollouts of one image share a baseline."""
        return rollouts_per_image(self.algorithm, self.images_per_group, start=self.begins)

    @property
    def all_budgets(self) -> bool:
        """Whether one gate learns all prices of computation."""
        return not self.fixed_budget

    @property
    def algorithm(self) -> AlgorithmConfig:
        """Hyperparameters of the algorithm that was chosen."""
        chosen: AlgorithmConfig = getattr(self, self.algo)
        return chosen


def prices_of(config: TrainAgentConfig) -> "PriceRange | None":
    """Return the prices that a configuration has a gate learn, ``None`` if it is one alone."""
    from dfs_rl.gating.budget_conditioning import PriceRange

    if not config.all_budgets:
        return None
    return PriceRange(lowest=config.cost_weights[0], highest=config.cost_weights[1])


def _usual_weight(config: TrainAgentConfig) -> float:
    """Return the price that a gate is turned to where nothing is said: the usual one, or the middle of a range that leaves it out."""
    lowest, highest = config.cost_weights
    within = not config.all_budgets or lowest <= COST_WEIGHT <= highest
    return COST_WEIGHT if within else math.sqrt(lowest * highest)


def weights_of(config: TrainAgentConfig) -> RewardWeights:
    """Return the reward weights that a configuration asks for."""
    reward = config.reward
    return RewardWeights(
        accuracy=reward.accuracy,
        log_likelihood=reward.log_likelihood,
        log_likelihood_floor=reward.log_likelihood_floor,
        cost=_usual_weight(config) if config.cost_weight is None else config.cost_weight,
        overshoot=reward.overshoot,
        cost_timing=reward.cost_timing,
    )


def _settled(config: TrainAgentConfig) -> TrainAgentConfig:
    """Return settings that say where the gate begins, unless it goes on from another one, and how many rollouts share a baseline."""
    begins = config.begins if config.init_gate is None else None
    return replace(config, start=begins, images_per_group=config.rollouts_per_image)


COMMAND = GateCommand(
    kind="train_agent",
    description="Learn which bits each layer of a backbone should spend on each image.",
    config_type=TrainAgentConfig,
    module="dfs_rl.experiments.gate_training",
    settle=_settled,
)
