"""Algorithms of ``train_agent`` and their hyperparameters, with reasons; imports no torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, get_args

from typing_extensions import Self

from dfs_rl.agents.methods import Method, register_method
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    configuration,
)
from dfs_rl.utils.registry import NameIn, Registry

ALGORITHM_CONFIGS: Registry[type["AlgorithmConfig"]] = Registry("algorithm")
"""Configuration of each algorithm, by the name that ``--algo`` takes."""
AlgorithmName = Annotated[str, NameIn(ALGORITHM_CONFIGS)]
FeatureChoice = Literal["none", "confidence", "all"]
"""Features that a gate reads: none, the confidence of a probe, or also the pooled channels."""
UsualStart = Literal["uniform", "indifferent"]
"""Initial policy of a gate of one pass."""
Start = Literal["rule", "uniform", "indifferent"]
"""Initial policy of any gate, see ``dfs_rl.agents.pretraining``."""

BackboneMode = Literal["frozen", "co-train"]
"""Backbone mode: fixed weights, or weights trained under the gate's choices."""

DEFAULT_GROUP_SIZE = 8
"""Default group size of an on-policy algorithm without pretraining on uniform options."""
_MAX_LEARNING_RATE = 0.03
_DEFAULT_ENT_COEF = 0.03
_BUFFER_BYTES = 64e6
_MAX_BUFFER_BYTES = 16_384e6
_POLICIES = "dfs_rl.agents.policies:"
_BUFFERS = "dfs_rl.agents.buffers:"


@configuration
class AlgorithmConfig(Method):
    """Hyperparameters of all algorithms.

    Attributes:
        learning_rate: Initial learning rate; default 12,000 / timesteps, or 1,500 / timesteps for a
            policy gradient that starts from a rule or a uniform option, at most 0.03.
        final_learning_rate: Final learning rate, reached linearly; default a twentieth of
            learning_rate.
    """

    command = "train_agent"
    setting = "algo"
    registry = ALGORITHM_CONFIGS
    algorithm: ClassVar[str]
    """Class of the algorithm, ``module:name``."""
    policy: ClassVar[str]
    """Class of its policy, ``module:name``."""
    gate: ClassVar[str] = "ff"
    """Kind of gate that the algorithm trains."""
    needs_budget: ClassVar[bool] = False
    """True if the algorithm requires a per-input budget."""

    path_length: ClassVar[Mapping[Start, float]] = dict.fromkeys(get_args(Start), 12_000.0)
    """Default learning rate times timesteps.

    Adam changes a weight by about the learning rate per step at any gradient, so weights can move
    the same distance in trainings of any length.
    """

    learning_rate: PositiveUnitInterval | None = None
    final_learning_rate: UnitInterval | None = None

    def resolve(
        self, n_envs: int, n_steps: int, observation_bytes: int, /, *, timesteps: int, start: Start
    ) -> Self:
        """Return a copy with the defaults that depend on the training; no value is ``None``.

        An update has an episode of ``n_steps`` decisions in each of ``n_envs`` environments.
        """
        del n_envs, n_steps, observation_bytes  # set further defaults in subclasses
        rate, final = self.learning_rate, self.final_learning_rate
        if rate is None:
            rate = min(_MAX_LEARNING_RATE, self.path_length[start] / timesteps)
        final = rate / 20 if final is None else final
        return replace(self, learning_rate=rate, final_learning_rate=final)


@configuration
class OnPolicyConfig(AlgorithmConfig):
    """Hyperparameters of on-policy algorithms.

    Attributes:
        gae_lambda: Trade-off between bias and variance of the advantage; used only with one
            rollout per image.
    """

    policy = _POLICIES + "GatePolicy"
    rollout_buffer: ClassVar[str] = _BUFFERS + "GroupRolloutBuffer"
    """Class of the rollout buffer for groups and for episodes of different lengths."""

    gae_lambda: UnitInterval = 0.95


@configuration
class PolicyGradientConfig(OnPolicyConfig):
    """Hyperparameters of algorithms with one loss of policy, entropy and value.

    After a rule or a uniform option there is little to change, and an entropy bonus would mix the
    options.

    Attributes:
        ent_coef: Initial weight of the entropy bonus, which falls linearly to 0; default 0.03 with
            --start indifferent, otherwise 0.
        vf_coef: Weight of the critic's loss; actor and critic share no weights, so it only affects
            gradient clipping.
        max_grad_norm: Maximum norm of the gradient, for clipping.
    """

    ent_coef: NonNegativeFloat | None = None
    vf_coef: NonNegativeFloat = 0.5
    max_grad_norm: PositiveFloat = 0.5

    path_length: ClassVar[Mapping[Start, float]] = {
        "rule": 1_500.0,
        "uniform": 1_500.0,
        "indifferent": 12_000.0,
    }

    def resolve(self, *update: int, timesteps: int, start: Start) -> Self:
        """Fill in the entropy bonus as well."""
        resolved = super().resolve(*update, timesteps=timesteps, start=start)
        default = _DEFAULT_ENT_COEF if start == "indifferent" else 0.0
        return replace(resolved, ent_coef=default if self.ent_coef is None else self.ent_coef)


@register_method("ppo")
@configuration
class PPOConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo ppo``.

    Attributes:
        n_epochs: Passes over each rollout; more gain little for their time.
        batch_size: Decisions per minibatch; must divide an update, num_envs x layers, and is at
            most a whole update. Default a quarter of an update.
        clip_range: PPO's bound on the change of probabilities per update.
    """

    label = "PPO"
    algorithm = "stable_baselines3:PPO"

    n_epochs: Count = 4
    batch_size: PositiveInt | None = None
    clip_range: PositiveFloat = 0.2

    def resolve(self, *update: int, timesteps: int, start: Start) -> Self:
        """Fill in the minibatch size as well."""
        n_envs, n_steps, _ = update
        resolved = super().resolve(*update, timesteps=timesteps, start=start)
        return replace(resolved, batch_size=_minibatch_size(self.batch_size, n_envs * n_steps))


@register_method("a2c")
class A2CConfig(PolicyGradientConfig):
    """Hyperparameters of ``--algo a2c``, which optimizes with RMSprop."""

    label = "A2C"
    algorithm = "stable_baselines3:A2C"


@register_method("maskable_ppo")
class MaskablePPOConfig(PPOConfig):
    """Hyperparameters of ``--algo maskable_ppo``: those of PPO."""

    label = "MaskablePPO"
    algorithm = "sb3_contrib:MaskablePPO"
    policy = _POLICIES + "MaskableGatePolicy"
    rollout_buffer = _BUFFERS + "MaskableGroupRolloutBuffer"
    needs_budget = True


@register_method("recurrent_ppo")
class RecurrentPPOConfig(PPOConfig):
    """Hyperparameters of ``--algo recurrent_ppo``, which trains one LSTM for all layers."""

    label = "RecurrentPPO"
    algorithm = "dfs_rl.agents.algorithms:GroupRecurrentPPO"
    policy = _POLICIES + "RecurrentGatePolicy"
    rollout_buffer = _BUFFERS + "RecurrentGroupRolloutBuffer"
    gate = "lstm"


@register_method("trpo")
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
    algorithm = "dfs_rl.agents.algorithms:SafeTRPO"

    target_kl: PositiveFloat = 0.01
    n_critic_updates: Count = 4
    batch_size: PositiveInt | None = None

    def resolve(self, *update: int, timesteps: int, start: Start) -> Self:
        """Fill in the minibatch size as well."""
        n_envs, n_steps, _ = update
        resolved = super().resolve(*update, timesteps=timesteps, start=start)
        return replace(resolved, batch_size=_minibatch_size(self.batch_size, n_envs * n_steps))


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
    gradient_steps: Count = 32
    batch_size: PositiveInt = 512
    buffer_size: PositiveInt | None = None
    max_grad_norm: PositiveFloat = 10.0

    def resolve(self, *update: int, timesteps: int, start: Start) -> Self:
        """Fill in the size of the replay buffer as well."""
        n_envs, n_steps, observation_bytes = update
        each = transition_bytes(observation_bytes)
        size = _buffer_size(self.buffer_size, n_envs, n_steps, each)
        resolved = super().resolve(*update, timesteps=timesteps, start=start)
        return replace(resolved, buffer_size=size)


@register_method("dqn")
class DQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo dqn``."""

    label = "DQN"
    algorithm = "dfs_rl.agents.q_learning:PerEnvExplorationDQN"
    policy = _POLICIES + "GateDQNPolicy"


@register_method("qrdqn")
@configuration
class QRDQNConfig(QLearningConfig):
    """Hyperparameters of ``--algo qrdqn``.

    Attributes:
        n_quantiles: Quantiles of each option's return; few, because an answer is right or wrong.
    """

    label = "QR-DQN"
    algorithm = "dfs_rl.agents.q_learning:PerEnvExplorationQRDQN"
    policy = _POLICIES + "GateQRDQNPolicy"

    n_quantiles: PositiveInt = 16


@configuration
class CoTrainConfig:
    """Hyperparameters of the backbone, with ``--backbone-mode co-train``.

    Attributes:
        batch_size: Training images per step; the backbone takes one step per update of the gate.
            These images count towards --timesteps like those of the gate, so both modes process
            the same number of images.
        learning_rate: Constant learning rate of Adam; small, because the norms keep their
            calibrated statistics.
        distillation: Weight of the gated pass's divergence from the full-precision pass, added to
            its cross-entropy.
        full_precision: Weight of the full-precision pass's cross-entropy, which keeps the teacher
            from drifting.
    """

    batch_size: PositiveInt = 64
    learning_rate: PositiveUnitInterval = 1e-4
    distillation: NonNegativeFloat = 1.0
    full_precision: NonNegativeFloat = 1.0

    def gate_timesteps(self, timesteps: int, images: int) -> int:
        """Return the part of ``timesteps`` left for the gate, whose updates have ``images``."""
        return timesteps * images // (images + self.batch_size)


@configuration
class LabelCoTrainConfig(CoTrainConfig):
    """Hyperparameters of the backbone with a supervised gate; by default those of DFS."""

    distillation: NonNegativeFloat = 0.0
    full_precision: NonNegativeFloat = 0.0


def transition_bytes(observation_bytes: int) -> int:
    """Return the bytes of one decision in a replay buffer."""
    # observations before and after, action, reward, termination and truncation
    return 2 * observation_bytes + 8 + 3 * 4


def resolved_group_size(config: AlgorithmConfig, asked: int | None, *, start: Start) -> int:
    """Return the number of rollouts of one image that share a baseline.

    By default 1 for a gate pretrained on uniform options. It has to learn small differences, for
    which more images help more than a baseline that cancels the difficulty of an image. An
    algorithm that is not on-policy raises ConfigError for another size.
    """
    on_policy = isinstance(config, OnPolicyConfig)
    if asked is None:
        return DEFAULT_GROUP_SIZE if on_policy and start == "indifferent" else 1
    if asked != 1 and not on_policy:
        raise ConfigError(
            f"group_size is {asked}, but {config.label} learns from single decisions without a "
            "baseline; leave it out, or give 1."
        )
    return asked


def _minibatch_size(asked: int | None, decisions: int) -> int:
    """Return the decisions per minibatch, at most a whole update; by default a quarter of it."""
    size = min(decisions, decisions // 4 if asked is None else asked)
    if size <= 1 or decisions % size != 0:
        given = "by default a quarter of an update" if asked is None else str(asked)
        raise ConfigError(
            f"batch_size is {given}; it must divide the {decisions} decisions of an update "
            "(num_envs x layers) and be at least 2."
        )
    return size


def _buffer_size(asked: int | None, n_envs: int, n_steps: int, each: int) -> int:
    """Return the size of a replay buffer in decisions, which take ``each`` bytes."""
    size = asked or int(_BUFFER_BYTES / each)
    if size < n_envs * n_steps:
        raise ConfigError(
            f"buffer_size is {size}; it must be at least {n_envs * n_steps}, the decisions of one "
            f"update of {n_envs} episodes of {n_steps} steps."
        )
    if size * each > _MAX_BUFFER_BYTES:
        raise ConfigError(
            f"buffer_size is {size}, which takes {size * each / 1e6:.4g} megabytes; at most "
            f"{_MAX_BUFFER_BYTES / 1e6:g} are allowed."
        )
    return size
