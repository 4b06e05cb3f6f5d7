"""Hyperparameters of reinforcement learning, with the reasons for their defaults.

The module does not import torch, so that help pages load quickly.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from dfs_rl.errors import ConfigError
from dfs_rl.gating.registry import GateKind
from dfs_rl.utils.config import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    configuration,
)
from dfs_rl.utils.registry import NameIn, Registry

ALGORITHM_CONFIGS: Registry[type["AlgorithmConfig"]] = Registry("algorithm")
"""Hyperparameters of each algorithm, by the name that ``--algo`` takes."""
AlgorithmName = Annotated[str, NameIn(ALGORITHM_CONFIGS)]
StaticMethod = Literal["ddpg", "td3", "sac", "ppo", "greedy"]
"""Method that finds a static bit table, see ``dfs_rl.agents.static.methods``."""
FeatureChoice = Literal["confidence", "all"]
"""Features that a gate reads: the confidence of a probe, or also the pooled channels."""
Start = Literal["uniform", "indifferent"]
"""Initial policy of a gate, see ``dfs_rl.agents.pretraining``."""

ConfigT = TypeVar("ConfigT", bound="AlgorithmConfig")

DEFAULT_GROUP_SIZE = 8
"""Default group size of an on-policy algorithm without pretraining on uniform options."""


class RolloutSize(NamedTuple):
    """Size of the data of one update.

    Attributes:
        n_envs: Number of parallel episodes.
        n_layers: Decisions per episode.
        observation_bytes: Bytes of one observation.
    """

    n_envs: int
    n_layers: int
    observation_bytes: int

    @property
    def decisions(self) -> int:
        """Decisions of all episodes."""
        return self.n_envs * self.n_layers


@configuration
class AlgorithmConfig:
    """Hyperparameters of all algorithms.

    Attributes:
        learning_rate: Initial learning rate; default 12,000 / timesteps, or 1,500 / timesteps for a
            policy gradient with --start uniform, at most 0.03.
        final_learning_rate: Final learning rate, reached linearly; default a twentieth of
            learning_rate.

    Raises:
        ConfigError: If a value is out of range.
    """

    label: ClassVar[str]
    """Name of its gates in tables and plots."""
    needs_budget: ClassVar[bool] = False
    """True if the algorithm requires a per-input budget."""
    gate: ClassVar[GateKind] = "ff"
    """Kind of gate that the algorithm trains."""

    learning_rate: PositiveUnitInterval | None = None
    final_learning_rate: UnitInterval | None = None

    def check_update(self, update: "RolloutSize") -> None:
        """Check the settings against the size of an update.

        Raises:
            ConfigError: If a setting does not fit that size.
        """

    def extra_arguments(self) -> dict[str, Any]:
        """Return further constructor arguments of the algorithm, for algorithms of a plugin."""
        return {}


@configuration
class OnPolicyConfig(AlgorithmConfig):
    """Hyperparameters of on-policy algorithms.

    Attributes:
        gae_lambda: Trade-off between bias and variance of the advantage; used only with one
            rollout per image.
    """

    gae_lambda: UnitInterval = 0.95


@configuration
class PolicyGradientConfig(OnPolicyConfig):
    """Hyperparameters of algorithms with one loss of policy, entropy and value.

    Attributes:
        ent_coef: Initial weight of the entropy bonus, which falls linearly to 0; default 0.03, or 0
            with --start uniform.
        vf_coef: Weight of the critic's loss; actor and critic share no weights, so it only affects
            gradient clipping.
        max_grad_norm: Maximum norm of the gradient, for clipping.
    """

    ent_coef: NonNegativeFloat | None = None
    vf_coef: NonNegativeFloat = 0.5
    max_grad_norm: PositiveFloat = 0.5


@configuration
class PPOConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo ppo``.

    Attributes:
        n_epochs: Passes over each rollout; more than 4 gain little for twice the time.
        batch_size: Decisions per minibatch; must divide an update, num_envs x layers, and is at
            most a whole update. Default a quarter of an update.
        clip_range: PPO's bound on the change of probabilities per update.
    """

    label = "PPO"

    n_epochs: PositiveInt = 4
    batch_size: PositiveInt | None = None
    clip_range: PositiveFloat = 0.2

    def check_update(self, update: RolloutSize) -> None:
        """Check that the minibatch size divides an update."""
        minibatch_size(self.batch_size, update)


@configuration
class MaskablePPOConfig(PPOConfig):
    """Hyperparameters of ``--algo maskable_ppo``: those of PPO.

    MaskablePPO differs from PPO only in the options that it may sample.
    """

    label = "MaskablePPO"
    needs_budget = True


@configuration
class RecurrentPPOConfig(PPOConfig):
    """Hyperparameters of ``--algo recurrent_ppo``: those of PPO.

    RecurrentPPO trains the gate of DFS, one LSTM for all layers.
    """

    label = "RecurrentPPO"
    gate = "lstm"


@configuration
class TRPOConfig(OnPolicyConfig):
    """Hyperparameters of ``--algo trpo``.

    The learning rates apply only to the critic; ``target_kl`` determines the actor's steps.

    Attributes:
        target_kl: Bound on the change of the policy per update, as the mean divergence in nats
            over the states of the rollout.
        n_critic_updates: Passes of the critic over each rollout.
        batch_size: Decisions per minibatch of the critic; must divide an update, num_envs x layers.
            Default a quarter of an update.
    """

    label = "TRPO"

    target_kl: PositiveFloat = 0.01
    n_critic_updates: PositiveInt = 4
    batch_size: PositiveInt | None = None

    def check_update(self, update: RolloutSize) -> None:
        """Check that the minibatch size divides an update."""
        minibatch_size(self.batch_size, update)


@configuration
class A2CConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo a2c``, which optimizes with RMSprop."""

    label = "A2C"


_BUFFER_BYTES = 64e6
_MOST_BUFFER_BYTES = 16_384e6
"""Largest replay buffer in bytes; checkpoints contain the buffer."""


@configuration
class QLearningConfig(AlgorithmConfig):
    """Hyperparameters of algorithms that learn the value of each option from a replay buffer.

    Attributes:
        learning_rate: Initial learning rate of Adam; smaller than the default of a policy gradient,
            because the target is learned as well and changes with each step.
        exploration_fraction: Share of the training over which the rate of random options falls,
            linearly from 1.
        exploration_final_eps: Rate of random options after that.
        gradient_steps: Gradient steps per update; an update is one episode of all environments.
        batch_size: Decisions per gradient step; large, because rewards of one option vary mostly
            with the images.
        buffer_size: Size of the replay buffer in decisions; by default it takes 64 megabytes.
            Checkpoints contain the buffer.
        max_grad_norm: Maximum norm of the gradient, for clipping; large, because the loss is linear
            in large errors.
    """

    learning_rate: PositiveUnitInterval | None = 0.003
    exploration_fraction: PositiveUnitInterval = 0.5
    exploration_final_eps: UnitInterval = 0.05
    gradient_steps: PositiveInt = 32
    batch_size: PositiveInt = 512
    buffer_size: PositiveInt | None = None
    max_grad_norm: PositiveFloat = 10.0

    def check_update(self, update: RolloutSize) -> None:
        """Check the size of the replay buffer."""
        self.transitions(update)

    def transitions(self, update: RolloutSize) -> int:
        """Return the size of the replay buffer in decisions.

        Raises:
            ConfigError: If it is smaller than one update, or takes too much memory.
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
    """Return the bytes of one decision in a replay buffer.

    A decision has observations before and after, action, reward, termination and truncation.

    Args:
        observation_bytes: Bytes of one observation.
    """
    return 2 * observation_bytes + 8 + 3 * 4


@configuration
class DQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo dqn``."""

    label = "DQN"


@configuration
class QRDQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo qrdqn``.

    Attributes:
        n_quantiles: Quantiles of each option's return; few, because an answer is right or wrong.
    """

    label = "QR-DQN"

    n_quantiles: PositiveInt = 16


def resolved_group_size(config: AlgorithmConfig, asked: int | None, *, start: Start) -> int:
    """Return the number of rollouts of one image that share a baseline.

    A gate pretrained on uniform options runs each image once per update by default. It has to learn
    small differences, for which more images per update help more than a baseline that cancels the
    difficulty of an image.

    Args:
        config: Hyperparameters; their type selects the algorithm.
        asked: Group size of the user; ``None`` for the default.
        start: Initial policy of the gate.

    Raises:
        ConfigError: If the algorithm does not support this group size.
    """
    if asked is not None:
        check_group_size(config, asked)
        return asked
    return (
        DEFAULT_GROUP_SIZE if isinstance(config, OnPolicyConfig) and start == "indifferent" else 1
    )


def check_group_size(config: AlgorithmConfig, rollouts: int) -> None:
    """Check that the algorithm supports a group size.

    Raises:
        ConfigError: If the group size is not 1 and the algorithm is not on-policy.
    """
    if rollouts != 1 and not isinstance(config, OnPolicyConfig):
        raise ConfigError(
            f"group_size is {rollouts}, but {config.label} learns from single decisions and "
            "compares no rollouts of one "
            "image; leave it out, or give 1."
        )


def minibatch_size(asked: int | None, update: RolloutSize) -> int:
    """Return the number of decisions per minibatch, at most a whole update.

    Args:
        asked: Minibatch size of the user; ``None`` for a quarter of an update.
        update: Size of an update.

    Raises:
        ConfigError: If the size does not divide an update, or is below 2.
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
    """Initial and final learning rate of a linear schedule."""

    start: float
    end: float


def learning_rate_range(config: AlgorithmConfig, timesteps: int) -> LearningRateRange:
    """Return the learning rates of a training of ``timesteps``, see ``with_start_defaults``."""
    config = with_start_defaults(config, "indifferent", timesteps=timesteps)
    assert config.learning_rate is not None
    assert config.final_learning_rate is not None
    return LearningRateRange(config.learning_rate, config.final_learning_rate)


def with_start_defaults(config: ConfigT, start: Start, *, timesteps: int) -> ConfigT:
    """Return a copy of a configuration with its training-dependent defaults filled in.

    The default learning rate is ``PATH_LENGTH / timesteps``, at most ``MAX_LEARNING_RATE``. Adam
    changes a weight by about the learning rate per step at any gradient, so weights can move the
    same distance in trainings of any length. A policy gradient that starts uniform has little to
    change: its learning rate is ``UNIFORM_START_PATH_LENGTH / timesteps``, and it has no entropy
    bonus, which would mix its options.

    Args:
        config: Hyperparameters.
        start: Initial policy of the gate.
        timesteps: Length of the whole training.
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
    """Return the entropy bonus's weight at ``progress``, a share of the training in [0, 1]."""
    first = DEFAULT_ENT_COEF if config.ent_coef is None else config.ent_coef
    return first * max(0.0, 1.0 - progress)


for _name, _config in (
    ("ppo", PPOConfig),
    ("a2c", A2CConfig),
    ("maskable_ppo", MaskablePPOConfig),
    ("trpo", TRPOConfig),
    ("dqn", DQNConfig),
    ("qrdqn", QRDQNConfig),
    ("recurrent_ppo", RecurrentPPOConfig),
):
    ALGORITHM_CONFIGS.add(_name, _config)
