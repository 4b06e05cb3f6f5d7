"""Registry and construction of reinforcement learning algorithms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from dfs_rl.agents.buffers import (
    GroupRolloutBuffer,
    MaskableGroupRolloutBuffer,
    RecurrentGroupRolloutBuffer,
    check_groups,
)
from dfs_rl.agents.hyperparameters import (
    ALGORITHM_CONFIGS,
    A2CConfig,
    AlgorithmConfig,
    DQNConfig,
    MaskablePPOConfig,
    OnPolicyConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    RolloutSize,
    TRPOConfig,
    check_group_size,
    ent_coef_at,
    learning_rate_range,
    minibatch_size,
)
from dfs_rl.agents.policies import (
    GateDQNPolicy,
    GatePolicy,
    GateQRDQNPolicy,
    MaskableGatePolicy,
    PerLayerEmbedding,
    PerLayerExtractor,
    RecurrentGatePolicy,
)
from dfs_rl.agents.q_learning import PerEnvExplorationDQN, PerEnvExplorationQRDQN
from dfs_rl.envs.spaces import observation_bytes
from dfs_rl.errors import ConfigError
from dfs_rl.utils.registry import Registry


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings of a policy that all algorithms share.

    Attributes:
        feature_sizes: Number of features of each gated layer's input.
        hidden: Width of each layer's hidden layer, in all networks.
        group_size: Rollouts of one image that share a baseline; 1 for no group baseline.
        seed: Seed of the weights, of the sampled actions and of the minibatches.
        device: Device of the policy.
        timesteps: Length of the whole training, which sets the default learning rate.
        sync_episodes: True if environments that exit early wait for the end of all episodes.
    """

    feature_sizes: tuple[int, ...]
    hidden: int
    group_size: int
    seed: int
    device: str
    timesteps: int
    sync_episodes: bool = False

    @property
    def n_steps(self) -> int:
        """Steps per environment and update: one episode, one step per gated layer."""
        return len(self.feature_sizes)


@dataclass(frozen=True)
class _Algorithm:
    """Classes of an algorithm.

    Attributes:
        algorithm: Stable-Baselines3's algorithm.
        config_type: Type of its hyperparameters.
        policy: Class of its policy.
        buffer: Rollout buffer with groups or exits; ``None`` for an off-policy algorithm.
    """

    algorithm: Callable[..., BaseAlgorithm]
    config_type: type[AlgorithmConfig]
    policy: type[BasePolicy]
    buffer: type[GroupRolloutBuffer] | None = GroupRolloutBuffer


def build_algorithm(
    config: AlgorithmConfig, env: VecEnv, learning: PolicySettings
) -> BaseAlgorithm:
    """Build an algorithm whose networks have separate weights for each layer.

    Actor and critic, or network and target network, share no weights. Only the LSTM of a recurrent
    policy is shared by all layers.

    Args:
        config: Hyperparameters; their type selects the algorithm.
        env: The batched environment; environments of one group are consecutive.
        learning: Settings of the policy and of its advantages.

    Raises:
        ConfigError: If the environments do not divide into groups, or the algorithm does not
            support groups.
    """
    check_group_size(config, learning.group_size)
    check_groups(env.num_envs, learning.group_size)
    entry = next(entry for entry in ALGORITHMS.values() if type(config) is entry.config_type)
    start, end = learning_rate_range(config, learning.timesteps)
    if isinstance(config, QLearningConfig):
        arguments = _q_learning_arguments(config, env, learning)
    else:
        assert isinstance(config, OnPolicyConfig)
        arguments = _on_policy_arguments(config, env, learning, entry.buffer)
    return entry.algorithm(
        entry.policy,
        env,
        learning_rate=lambda remaining: end + (start - end) * max(0.0, remaining),
        gamma=1.0,  # episodes are short and most of the reward comes at their end
        seed=learning.seed,
        device=learning.device,
        **{**arguments, **config.extra_arguments()},
    )


def _on_policy_arguments(
    config: OnPolicyConfig,
    env: VecEnv,
    learning: PolicySettings,
    buffer: type[GroupRolloutBuffer] | None,
) -> dict[str, Any]:
    """Return the constructor arguments of an on-policy algorithm."""
    grouped = learning.group_size > 1 or learning.sync_episodes
    groups = {
        "group_size": learning.group_size,
        "sync_episodes": learning.sync_episodes,
    }
    arguments: dict[str, Any] = {
        "n_steps": learning.n_steps,
        "gae_lambda": config.gae_lambda,
        # The scale of rewards depends on the reward weights that the user chooses.
        "normalize_advantage": True,
        "rollout_buffer_class": buffer if grouped else None,
        "rollout_buffer_kwargs": groups if grouped else None,
    }
    if isinstance(config, PolicyGradientConfig):
        arguments["ent_coef"] = ent_coef_at(config, 0.0)
        arguments["vf_coef"] = config.vf_coef
        arguments["max_grad_norm"] = config.max_grad_norm
    if isinstance(config, PPOConfig):
        arguments["n_epochs"] = config.n_epochs
        arguments["clip_range"] = config.clip_range
    if isinstance(config, TRPOConfig):
        arguments["target_kl"] = config.target_kl
        arguments["n_critic_updates"] = config.n_critic_updates
    if isinstance(config, PPOConfig | TRPOConfig):
        arguments["batch_size"] = minibatch_size(config.batch_size, _update_size(env, learning))
    arguments["policy_kwargs"] = {
        "net_arch": {"pi": [], "vf": []},  # the extractor is the whole network
        "share_features_extractor": False,  # the critic must not shape the deployed actor
        **_extractor(learning, outputs=_n_actions(env)),
    }
    if isinstance(config, RecurrentPPOConfig):
        arguments["policy_kwargs"] |= {
            "features_extractor_class": PerLayerEmbedding,
            "features_extractor_kwargs": {
                "feature_sizes": learning.feature_sizes,
                "outputs": learning.hidden,
            },
            "lstm_hidden_size": learning.hidden,
        }
    return arguments


def _q_learning_arguments(
    config: QLearningConfig, env: VecEnv, learning: PolicySettings
) -> dict[str, Any]:
    """Return the constructor arguments of an algorithm with a replay buffer."""
    quantiles = config.n_quantiles if isinstance(config, QRDQNConfig) else 1
    policy: dict[str, Any] = {
        "net_arch": [],  # the extractor is the whole network
        **_extractor(learning, outputs=quantiles * _n_actions(env)),
    }
    if isinstance(config, QRDQNConfig):
        policy["n_quantiles"] = quantiles
    return {
        "buffer_size": config.transitions(_update_size(env, learning)),
        "learning_starts": 0,
        "batch_size": config.batch_size,
        "train_freq": learning.n_steps,
        "gradient_steps": config.gradient_steps,
        # Once per update, so that the target is fixed during an update.
        "target_update_interval": env.num_envs * learning.n_steps,
        "tau": 1.0,
        "exploration_fraction": config.exploration_fraction,
        "exploration_initial_eps": 1.0,
        "exploration_final_eps": config.exploration_final_eps,
        "max_grad_norm": config.max_grad_norm,
        "policy_kwargs": policy,
    }


def _extractor(learning: PolicySettings, *, outputs: int) -> dict[str, Any]:
    sizes = {"feature_sizes": learning.feature_sizes, "hidden": learning.hidden}
    return {
        "features_extractor_class": PerLayerExtractor,
        "features_extractor_kwargs": {**sizes, "outputs": outputs},
    }


def _n_actions(env: VecEnv) -> int:
    assert isinstance(env.action_space, spaces.Discrete)
    return int(env.action_space.n)


def _update_size(env: VecEnv, learning: PolicySettings) -> RolloutSize:
    assert isinstance(env.observation_space, spaces.Dict)
    return RolloutSize(env.num_envs, learning.n_steps, observation_bytes(env.observation_space))


class GroupRecurrentPPO(RecurrentPPO):
    """RecurrentPPO with a configurable rollout buffer, like the other on-policy algorithms.

    Args:
        rollout_buffer_class: Class of the rollout buffer; ``None`` for upstream's.
        rollout_buffer_kwargs: Keyword arguments of the rollout buffer.
        args: Arguments of ``RecurrentPPO``.
        kwargs: Keyword arguments of ``RecurrentPPO``.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - passed on
        rollout_buffer_class: type[RecurrentGroupRolloutBuffer] | None,
        rollout_buffer_kwargs: Mapping[str, Any] | None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> None:
        super().__init__(*args, **kwargs)
        if rollout_buffer_class is not None:
            assert isinstance(self.observation_space, spaces.Dict)
            assert isinstance(self.rollout_buffer, RecurrentDictRolloutBuffer)
            self.rollout_buffer = rollout_buffer_class(
                self.n_steps,
                self.observation_space,
                self.action_space,
                self.rollout_buffer.hidden_state_shape,
                self.device,
                gamma=self.gamma,
                n_envs=self.n_envs,
                **(rollout_buffer_kwargs or {}),
            )


class SafeTRPO(TRPO):
    """TRPO that skips updates with equal advantages, on which its line search divides by zero."""

    def train(self) -> None:
        """Update the policy unless all advantages are equal."""
        if np.ptp(self.rollout_buffer.advantages) > 0.0:
            super().train()


ALGORITHMS: Registry[_Algorithm] = Registry(
    "algorithm",
    {
        "ppo": _Algorithm(PPO, PPOConfig, GatePolicy),
        "a2c": _Algorithm(A2C, A2CConfig, GatePolicy),
        "maskable_ppo": _Algorithm(
            MaskablePPO, MaskablePPOConfig, MaskableGatePolicy, MaskableGroupRolloutBuffer
        ),
        "trpo": _Algorithm(SafeTRPO, TRPOConfig, GatePolicy),
        "recurrent_ppo": _Algorithm(
            GroupRecurrentPPO, RecurrentPPOConfig, RecurrentGatePolicy, RecurrentGroupRolloutBuffer
        ),
        "dqn": _Algorithm(PerEnvExplorationDQN, DQNConfig, GateDQNPolicy, None),
        "qrdqn": _Algorithm(PerEnvExplorationQRDQN, QRDQNConfig, GateQRDQNPolicy, None),
    },
)
AlgorithmT = TypeVar("AlgorithmT", bound=type[BaseAlgorithm])


def register_method(
    name: str,
    config: type[AlgorithmConfig],
    *,
    policy: type[BasePolicy] = GatePolicy,
    buffer: type[GroupRolloutBuffer] | None = GroupRolloutBuffer,
) -> Callable[[AlgorithmT], AlgorithmT]:
    """Register a Stable-Baselines3 algorithm as a method of ``train_agent``.

    It is then a choice of ``train_agent --algo``, of ``compare --gates`` and of sweeps::

        @configuration
        class MyPPOConfig(PPOConfig):
            label = "my PPO"


        @register_method("my_ppo", MyPPOConfig)
        class MyPPO(PPO): ...

    Args:
        name: Its name: lower-case letters, digits and underscores.
        config: Type of its hyperparameters, used by no other method: a subclass of that of the
            closest built-in one. ``extra_arguments`` returns constructor arguments beyond those of
            that algorithm.
        policy: Class of its policy.
        buffer: Its rollout buffer with groups or exits; ``None`` for an off-policy algorithm.

    Raises:
        ConfigError: If the name is taken or malformed, or another method has the configuration.
    """

    def register(algorithm: AlgorithmT) -> AlgorithmT:
        if config in ALGORITHM_CONFIGS.values():
            raise ConfigError(
                f"config is {config.__name__}, which another method has; give {name!r} a subclass."
            )
        ALGORITHMS.add(name, _Algorithm(algorithm, config, policy, buffer))
        ALGORITHM_CONFIGS.add(name, config)
        return algorithm

    return register
