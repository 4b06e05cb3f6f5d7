"""Hyperparameters, each default with its reason; free of torch, so that a help page is quick."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import Count, Positive, PositiveOrZero, PositiveShare, Share, check_values

AlgorithmName = Literal["ppo", "a2c", "maskable_ppo", "trpo", "dqn", "qrdqn", "recurrent_ppo"]
GateKind = Literal["ff", "lstm"]
"""A small network for each layer, or one LSTM for all."""
BuiltKind = Literal["ff", "lstm", "oneshot"]
"""Of a gate, see ``dfs_rl.agents.gate_export``; one that decides everything at once is BlockDrop's alone."""
StaticMethod = Literal["ddpg", "td3", "sac", "ppo", "greedy"]
"""How one table for all images is found, see ``dfs_rl.agents.static.methods``."""
FeatureChoice = Literal["confidence", "all"]
"""What a gate looks at: how sure a probe is, or the pooled channels beside it."""
Start = Literal["uniform", "indifferent"]
"""Where a gate begins, see ``dfs_rl.agents.pretraining``."""


ROLLOUTS_PER_IMAGE = 8
"""That share a baseline where nothing else is asked for and a gate does not begin at uniform options."""


class UpdateSize(NamedTuple):
    """What an algorithm gets to learn from at once.

    Attributes:
        walks: Side by side.
        layers: Decisions of each.
        observation_bytes: What is seen before one decision takes.
    """

    walks: int
    layers: int
    observation_bytes: int

    @property
    def decisions(self) -> int:
        """Of all walks."""
        return self.walks * self.layers


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """What all algorithms have in common.

    Attributes:
        learning_rate: Adam's step size at the start; by default 12,000 / timesteps, or 1,500 / timesteps for a gate that begins at
            uniform options and has little to change, but at most 0.03.
        final_learning_rate: Step size at the end, reached linearly, because the last decisions are close calls that a large step
            undoes; by default a twentieth of the first.

    Raises:
        ConfigError: If a value is out of range.
    """

    label: ClassVar[str]
    """What tables and plots call its gates."""
    needs_budget: ClassVar[bool] = False
    """Whether it is about keeping every image within a budget."""
    gate: ClassVar[GateKind] = "ff"
    """What it learns."""

    learning_rate: PositiveShare | None = None
    final_learning_rate: Share | None = None

    def __post_init__(self) -> None:
        check_values(self)

    def check_update(self, update: "UpdateSize") -> None:
        """Refuse settings that do not suit an update of that size.

        Raises:
            ConfigError: In a sentence that names both.
        """


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(AlgorithmConfig):
    """What the algorithms that learn from their latest rollout alone have in common.

    Attributes:
        gae_lambda: Bias against variance of the advantage with one rollout per image; unused with several.
    """

    gae_lambda: Share = 0.95


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(OnPolicyConfig):
    """What the algorithms that follow one gradient of policy, entropy and value have in common.

    Attributes:
        entropy: Weight of the entropy bonus at the start, which keeps the first good table from ending the search; it falls
            linearly to 0, because a gate that is deployed deterministic should end deterministic. By default 0.03, and 0 for a gate
            that begins at uniform options, which a bonus would mix.
        value_weight: Weight of the critic's loss; actor and critic share no weights, so it only matters through gradient clipping.
        max_grad_norm: Gradient clipping.
    """

    entropy: PositiveOrZero | None = None
    value_weight: PositiveOrZero = 0.5
    max_grad_norm: Positive = 0.5


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo ppo``.

    Attributes:
        epochs: Passes over each rollout; more than 4 buys little for twice the time.
        minibatches: Minibatches per pass; a minibatch of envs x layers / 4 runs at the speed of memory, not of Python.
        clip_range: PPO's bound on the change of probability per update.
    """

    label = "PPO"

    epochs: Count = 4
    minibatches: Count = 4
    clip_range: Positive = 0.2

    def check_update(self, update: UpdateSize) -> None:
        """See ``AlgorithmConfig``."""
        batch_size(self.minibatches, update)


@dataclass(frozen=True, kw_only=True)
class MaskablePPOConfig(PPOConfig):
    """Hyperparameters of ``--algo maskable_ppo``: PPO's, for it differs only in the options that it may draw."""

    label = "MaskablePPO"
    needs_budget = True


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOConfig(PPOConfig):
    """Hyperparameters of ``--algo recurrent_ppo``: PPO's, for the gate of DFS, one LSTM for all layers."""

    label = "RecurrentPPO"
    gate = "lstm"


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(OnPolicyConfig):
    """Hyperparameters of ``--algo trpo``. The step sizes are the critic's alone; the actor's follow from ``target_kl``.

    Attributes:
        target_kl: How far an update may move the policy, as the mean divergence in nats over the states that it saw.
        critic_updates: Passes of the critic over each rollout; ten were no better than four on digits (600,000 steps, three seeds),
            and with several rollouts per image it only watches.
        minibatches: Minibatches per pass of the critic.
    """

    label = "TRPO"

    target_kl: Positive = 0.01
    critic_updates: Count = 4
    minibatches: Count = 4

    def check_update(self, update: UpdateSize) -> None:
        """See ``AlgorithmConfig``."""
        batch_size(self.minibatches, update)


@dataclass(frozen=True, kw_only=True)
class A2CConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo a2c``; its optimiser is RMSprop."""

    label = "A2C"


_MOST_MEGABYTES = 16_384.0
"""A checkpoint holds as much."""


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(AlgorithmConfig):
    """What the algorithms that learn the worth of each option from remembered decisions have in common.

    Attributes:
        learning_rate: Adam's step size at the start; smaller than a policy gradient's default, for the target is learned as well
            and moves with each step.
        exploration: Share of the training in which random options grow rare, linearly from all; it ends well before the training
            does, so that late layers are learned on what early layers will really choose.
        final_exploration: Share of random options from then on, so that none is forgotten.
        gradient_steps: Steps per update, which is one walk of all environments: a remembered decision is used a few times.
        batch_size: Decisions per step; large, because the rewards of one option differ mostly by the images.
        replay_megabytes: Memory for past decisions, and the size of a checkpoint.
        max_grad_norm: Gradient clipping; wide, for the loss is linear in large errors.
    """

    learning_rate: PositiveShare | None = 0.003
    exploration: PositiveShare = 0.5
    final_exploration: Share = 0.05
    gradient_steps: Count = 32
    batch_size: Count = 512
    replay_megabytes: Annotated[float, Field(gt=0, le=_MOST_MEGABYTES)] = 64.0
    max_grad_norm: Positive = 10.0

    def check_update(self, update: UpdateSize) -> None:
        """See ``AlgorithmConfig``."""
        self.remembered(update)

    def remembered(self, update: UpdateSize) -> int:
        """Return how many decisions fit into the memory.

        Raises:
            ConfigError: If those of one update do not.
        """
        # What was seen before and after, the action as int64, and reward, end and cut as float32.
        each = 2 * update.observation_bytes + 8 + 3 * 4
        decisions = int(self.replay_megabytes * 1e6 / each)
        if decisions < update.decisions:
            raise ConfigError(
                f"replay_megabytes is {self.replay_megabytes}, which holds {decisions} decisions; one update of {update.walks} "
                f"walks of {update.layers} layers makes {update.decisions}, {update.decisions * each / 1e6:.3g} megabytes."
            )
        return decisions


@dataclass(frozen=True, kw_only=True)
class DQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo dqn``."""

    label = "DQN"


@dataclass(frozen=True, kw_only=True)
class QRDQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo qrdqn``.

    Attributes:
        quantiles: Of each option's worth; few, because a walk ends right or wrong and little lies between.
    """

    label = "QR-DQN"

    quantiles: Count = 16


def rollouts_per_image(config: AlgorithmConfig, asked: int | None, *, start: Start) -> int:
    """Return how many rollouts of one image share a baseline.

    A gate that begins at uniform options sees every image once by default: what it still has to learn are close calls, for which
    more images an update are worth more than a baseline without their difficulty. On a ResNet-20 (500,000 steps of PPO, three
    seeds) one rollout an image earned more on val than eight in each seed, on digits (1,200,000 steps, five seeds; with exits 300,000
    and three) as much. A gate that began indifferent still gained by eight on the ResNet-20 (one seed).

    Args:
        config: Hyperparameters; their type says which algorithm.
        asked: What the user asked for; ``None`` for the default.
        start: Where the gate begins.

    Raises:
        ConfigError: If the algorithm has no use for as many.
    """
    if asked is not None:
        check_rollouts(config, asked)
        return asked
    return (
        ROLLOUTS_PER_IMAGE if isinstance(config, OnPolicyConfig) and start == "indifferent" else 1
    )


def check_rollouts(config: AlgorithmConfig, rollouts: int) -> None:
    """Refuse several rollouts of one image where none are compared.

    Raises:
        ConfigError: In a sentence that names the algorithm.
    """
    if rollouts != 1 and not isinstance(config, OnPolicyConfig):
        raise ConfigError(
            f"images_per_group is {rollouts}, but {config.label} learns from single decisions and compares no rollouts of one "
            "image; leave it out, or give 1."
        )


def batch_size(minibatches: int, update: UpdateSize) -> int:
    """Return the size of each of so many minibatches of an update.

    Raises:
        ConfigError: If they would not be equal, or of 1.
    """
    if update.decisions % minibatches != 0 or update.decisions == minibatches:
        raise ConfigError(
            f"minibatches is {minibatches}; it must divide the {update.decisions} samples of an update (num_envs x layers) into "
            "batches of at least 2."
        )
    return update.decisions // minibatches


PATH_LENGTH = 12_000.0
SHORT_PATH_LENGTH = 1_500.0
"""For a gate that begins at uniform options. On a ResNet-20 with 1,000,000 steps, one seed, 0.001 and 0.0005 did better than 0.004, which
lost on the way what it began with; on digits with 100,000 steps, three seeds, 0.01 did better than 0.03 and 0.003."""
LARGEST_STEP = 0.03
USUAL_ENTROPY = 0.03


class StepSizes(NamedTuple):
    """Where the linear schedule of step sizes starts and ends."""

    start: float
    end: float


def step_sizes(config: AlgorithmConfig, timesteps: int) -> StepSizes:
    """Return the step sizes that a configuration asks for, or the defaults for a training of ``timesteps``.

    The default start is ``PATH_LENGTH / timesteps``, at most ``LARGEST_STEP``. Adam moves a weight by about its step size
    whatever the gradient, so this keeps the way it can go in all the same. It is a rule through two points, not a law: on
    digits with 600,000 steps 0.01 to 0.03 did best and gates trained with 0.003 stayed near one table for all images; on a
    ResNet-20 with about 3,000,000 steps 0.003 did better than 0.02, in one run each.
    """
    start = config.learning_rate
    if start is None:
        start = min(LARGEST_STEP, PATH_LENGTH / timesteps)
    end = config.final_learning_rate
    return StepSizes(start, start / 20 if end is None else end)


def suited_to(config: AlgorithmConfig, start: Start, *, timesteps: int) -> AlgorithmConfig:
    """Return a configuration with the defaults that depend on where a gate begins; the others stay open."""
    if start != "uniform" or not isinstance(config, PolicyGradientConfig):
        return config
    if config.learning_rate is None:
        config = replace(config, learning_rate=min(LARGEST_STEP, SHORT_PATH_LENGTH / timesteps))
    return replace(config, entropy=0.0) if config.entropy is None else config


def entropy_weight(config: PolicyGradientConfig, progress: float) -> float:
    """Return the weight of the entropy bonus after a share ``progress`` of training, in [0, 1]."""
    first = USUAL_ENTROPY if config.entropy is None else config.entropy
    return first * max(0.0, 1.0 - progress)
