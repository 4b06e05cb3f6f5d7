"""Hyperparameters, each default with its reason; free of torch, so that a help page is quick."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, TypeVar

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    configuration,
)

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
"""Initial policy of a gate, see ``dfs_rl.agents.pretraining``."""

ConfigT = TypeVar("ConfigT", bound="AlgorithmConfig")

DEFAULT_GROUP_SIZE = 8
"""That share a baseline where nothing else is asked for and a gate does not begin at uniform options."""


class RolloutSize(NamedTuple):
    """What an algorithm gets to learn from at once.

    Attributes:
        walks: Side by side.
        layers: Decisions of each.
        observation_bytes: What is seen before one decision takes.
    """

    n_envs: int
    n_layers: int
    observation_bytes: int

    @property
    def decisions(self) -> int:
        """Of all walks."""
        return self.n_envs * self.n_layers


@configuration
class AlgorithmConfig:
    """What all algorithms have in common.

    Attributes:
        learning_rate: Initial step size; default 12,000 / timesteps, or 1,500 / timesteps for a
            policy gradient with --start uniform, at most 0.03.
        final_learning_rate: Final step size, reached linearly; default a twentieth of
            learning_rate.

    Raises:
        ConfigError: If a value is out of range.
    """

    label: ClassVar[str]
    """What tables and plots call its gates."""
    needs_budget: ClassVar[bool] = False
    """Whether it is about keeping every image within a budget."""
    gate: ClassVar[GateKind] = "ff"
    """What it learns."""

    learning_rate: PositiveUnitInterval | None = None
    final_learning_rate: UnitInterval | None = None

    def check_update(self, update: "RolloutSize") -> None:
        """Refuse settings that do not suit an update of that size.

        Raises:
            ConfigError: In a sentence that names both.
        """


@configuration
class OnPolicyConfig(AlgorithmConfig):
    """What the algorithms that learn from their latest rollout alone have in common.

    Attributes:
        gae_lambda: Bias against variance of the advantage with one rollout per image; unused with
            several.
    """

    gae_lambda: UnitInterval = 0.95


@configuration
class PolicyGradientConfig(OnPolicyConfig):
    """What the algorithms that follow one gradient of policy, entropy and value have in common.

    Attributes:
        ent_coef: Initial weight of the entropy bonus, which falls linearly to 0; default 0.03, or 0
            with --start uniform.
        vf_coef: Weight of the critic's loss; actor and critic share no weights, so it only matters
            for gradient clipping.
        max_grad_norm: Gradient clipping.
    """

    ent_coef: NonNegativeFloat | None = None
    vf_coef: NonNegativeFloat = 0.5
    max_grad_norm: PositiveFloat = 0.5


@configuration
class PPOConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo ppo``.

    Attributes:
        n_epochs: Passes over each rollout; more than 4 gain little for twice the time.
        batch_size: Decisions per minibatch; must divide an update, num_envs x layers, and at most
            all of it counts. Default a quarter of an update.
        clip_range: PPO's bound on the change of probability per update.
    """

    label = "PPO"

    n_epochs: PositiveInt = 4
    batch_size: PositiveInt | None = None
    clip_range: PositiveFloat = 0.2

    def check_update(self, update: RolloutSize) -> None:
        """See ``AlgorithmConfig``."""
        minibatch_size(self.batch_size, update)


@configuration
class MaskablePPOConfig(PPOConfig):
    """Hyperparameters of ``--algo maskable_ppo``: PPO's, for it differs only in the options that it may draw."""

    label = "MaskablePPO"
    needs_budget = True


@configuration
class RecurrentPPOConfig(PPOConfig):
    """Hyperparameters of ``--algo recurrent_ppo``: PPO's, for the gate of DFS, one LSTM for all layers."""

    label = "RecurrentPPO"
    gate = "lstm"


@configuration
class TRPOConfig(OnPolicyConfig):
    """Hyperparameters of ``--algo trpo``. The step sizes are the critic's alone; the actor's follow from ``target_kl``.

    Attributes:
        target_kl: How far an update may move the policy, as the mean divergence in nats over the
            states that it saw.
        n_critic_updates: Passes of the critic over each rollout.
        batch_size: Decisions per minibatch of the critic; must divide an update, num_envs x layers.
            Default a quarter of an update.
    """

    label = "TRPO"

    target_kl: PositiveFloat = 0.01
    n_critic_updates: PositiveInt = 4
    batch_size: PositiveInt | None = None

    def check_update(self, update: RolloutSize) -> None:
        """See ``AlgorithmConfig``."""
        minibatch_size(self.batch_size, update)


@configuration
class A2CConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo a2c``; its optimiser is RMSprop."""

    label = "A2C"


_BUFFER_BYTES = 64e6
_MOST_BUFFER_BYTES = 16_384e6
"""A checkpoint holds the buffer."""


@configuration
class QLearningConfig(AlgorithmConfig):
    """What the algorithms that learn the worth of each option from remembered decisions have in common.

    Attributes:
        learning_rate: Adam's step size at the start; smaller than a policy gradient's default, for
            the target is learned as well and moves with each step.
        exploration_fraction: Share of the training over which the rate of random options falls,
            linearly from 1.
        exploration_final_eps: Rate of random options afterwards.
        gradient_steps: Gradient steps per update; an update is one episode of all environments.
        batch_size: Decisions per gradient step; large, because rewards of one option differ mostly
            by the images.
        buffer_size: Decisions that the replay buffer holds; default as many as fit in 64 megabytes.
            A checkpoint holds them too.
        max_grad_norm: Gradient clipping; wide, because the loss is linear in large errors.
    """

    learning_rate: PositiveUnitInterval | None = 0.003
    exploration_fraction: PositiveUnitInterval = 0.5
    exploration_final_eps: UnitInterval = 0.05
    gradient_steps: PositiveInt = 32
    batch_size: PositiveInt = 512
    buffer_size: PositiveInt | None = None
    max_grad_norm: PositiveFloat = 10.0

    def check_update(self, update: RolloutSize) -> None:
        """See ``AlgorithmConfig``."""
        self.transitions(update)

    def transitions(self, update: RolloutSize) -> int:
        """Return the number of decisions in the replay buffer.

        Raises:
            ConfigError: If it does not hold one update, or takes too much memory.
        """
        each = transition_bytes(update.observation_bytes)
        size = self.buffer_size or int(_BUFFER_BYTES / each)
        if size < update.decisions:
            raise ConfigError(
                f"buffer_size is {size}; it must hold the {update.decisions} decisions of one "
                f"update of {update.n_envs} episodes of "
                f"{update.n_layers} layers."
            )
        if size * each > _MOST_BUFFER_BYTES:
            raise ConfigError(
                f"buffer_size is {size}, which takes {size * each / 1e6:.4g} megabytes; at most "
                f"{_MOST_BUFFER_BYTES / 1e6:g} are allowed."
            )
        return size


def transition_bytes(observation_bytes: int) -> int:
    """Return the bytes of one decision in a replay buffer: observations before and after, action, reward, end and truncation."""
    return 2 * observation_bytes + 8 + 3 * 4


@configuration
class DQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo dqn``."""

    label = "DQN"


@configuration
class QRDQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo qrdqn``.

    Attributes:
        n_quantiles: Quantiles of each option's return; few, because an episode ends right or wrong.
    """

    label = "QR-DQN"

    n_quantiles: PositiveInt = 16


def resolved_group_size(config: AlgorithmConfig, asked: int | None, *, start: Start) -> int:
    """Return how many rollouts of one image share a baseline.

    A gate that begins at uniform options sees every image once by default: what it still has to
    learn are close calls, for which more images an update are worth more than a baseline without
    their difficulty. On a ResNet-20 (500,000 steps of PPO, three seeds) one rollout an image earned
    more on val than eight in each seed, on digits (1,200,000 steps, five seeds; with exits 300,000
    and three) as much. A gate that began indifferent still gained by eight on the ResNet-20 (one
    seed).

    Args:
        config: Hyperparameters; their type says which algorithm.
        asked: What the user asked for; ``None`` for the default.
        start: Where the gate begins.

    Raises:
        ConfigError: If the algorithm has no use for as many.
    """
    if asked is not None:
        check_group_size(config, asked)
        return asked
    return (
        DEFAULT_GROUP_SIZE if isinstance(config, OnPolicyConfig) and start == "indifferent" else 1
    )


def check_group_size(config: AlgorithmConfig, rollouts: int) -> None:
    """Refuse several rollouts of one image where none are compared.

    Raises:
        ConfigError: In a sentence that names the algorithm.
    """
    if rollouts != 1 and not isinstance(config, OnPolicyConfig):
        raise ConfigError(
            f"group_size is {rollouts}, but {config.label} learns from single decisions and "
            "compares no rollouts of one "
            "image; leave it out, or give 1."
        )


def minibatch_size(asked: int | None, update: RolloutSize) -> int:
    """Return the decisions in a minibatch: ``asked``, at most a whole update, or a quarter of one.

    Raises:
        ConfigError: If it does not divide an update, or is 1.
    """
    size = min(update.decisions, update.decisions // 4 if asked is None else asked)
    if size <= 1 or update.decisions % size != 0:
        given = "by default a quarter of an update" if asked is None else str(asked)
        raise ConfigError(
            f"batch_size is {given}; it must divide the {update.decisions} decisions of an update "
            "(num_envs x layers) and be at least 2."
        )
    return size


PATH_LENGTH = 12_000.0
UNIFORM_START_PATH_LENGTH = 1_500.0
MAX_LEARNING_RATE = 0.03
DEFAULT_ENT_COEF = 0.03


class LearningRateRange(NamedTuple):
    """Where the linear schedule of step sizes starts and ends."""

    start: float
    end: float


def learning_rate_range(config: AlgorithmConfig, timesteps: int) -> LearningRateRange:
    """Return the step sizes of a training of ``timesteps``, see ``with_start_defaults``."""
    config = with_start_defaults(config, "indifferent", timesteps=timesteps)
    assert config.learning_rate is not None
    assert config.final_learning_rate is not None
    return LearningRateRange(config.learning_rate, config.final_learning_rate)


def with_start_defaults(config: ConfigT, start: Start, *, timesteps: int) -> ConfigT:
    """Return a configuration with numbers for all defaults that depend on the initial policy and the length of the training.

    The default step size is ``PATH_LENGTH / timesteps``, at most ``MAX_LEARNING_RATE``. Adam moves
    a weight by about its step size whatever the gradient, so the distance that weights can move
    stays the same. A policy gradient that starts uniform has little to
    change: its step size is ``UNIFORM_START_PATH_LENGTH / timesteps``, and it has no entropy bonus,
        which would mix its options.
    """
    follows_gradient = isinstance(config, PolicyGradientConfig)
    gentle = follows_gradient and start == "uniform"
    rate, final = config.learning_rate, config.final_learning_rate
    if rate is None:
        rate = min(
            MAX_LEARNING_RATE, (UNIFORM_START_PATH_LENGTH if gentle else PATH_LENGTH) / timesteps
        )
    values: dict[str, float] = {
        "learning_rate": rate,
        "final_learning_rate": rate / 20 if final is None else final,
    }
    if isinstance(config, PolicyGradientConfig) and config.ent_coef is None:
        values["ent_coef"] = 0.0 if gentle else DEFAULT_ENT_COEF
    return replace(config, **values)


def ent_coef_at(config: PolicyGradientConfig, progress: float) -> float:
    """Return the weight of the entropy bonus after a share ``progress`` of training, in [0, 1]."""
    first = DEFAULT_ENT_COEF if config.ent_coef is None else config.ent_coef
    return first * max(0.0, 1.0 - progress)


ALGORITHM_CONFIGS: Mapping[AlgorithmName, type[AlgorithmConfig]] = {
    "ppo": PPOConfig,
    "a2c": A2CConfig,
    "maskable_ppo": MaskablePPOConfig,
    "trpo": TRPOConfig,
    "dqn": DQNConfig,
    "qrdqn": QRDQNConfig,
    "recurrent_ppo": RecurrentPPOConfig,
}
"""Hyperparameters of each algorithm."""
