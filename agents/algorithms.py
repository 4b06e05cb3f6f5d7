"""Reinforcement learning algorithms by name, and how to build one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    A2CConfig,
    AlgorithmConfig,
    AlgorithmName,
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


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Sizes and settings of a gate that all algorithms need.

    Attributes:
        feature_sizes: Numbers that describe each gated layer's input.
        hidden: Width of each layer's own hidden layer, in all networks.
        group_size: Rollouts of one image that share a baseline; 1 uses no such baseline.
        sync_episodes: Whether walks that left early rest until the others have come to the end.
        seed: Seed of the weights, of the sampled actions and of the minibatches.
        device: Where the policy lives.
        timesteps: Length of the whole training, which the default step size follows.
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
    """Stable-Baselines3's classes for an algorithm's hyperparameters.

    Attributes:
        algorithm: The algorithm.
        config_type: Its hyperparameters.
        policy: Its policy.
        buffer: Rollouts with groups or exits, of an on-policy algorithm.
    """

    algorithm: Callable[..., BaseAlgorithm]
    config_type: type[AlgorithmConfig]
    policy: type[BasePolicy]
    buffer: type[GroupRolloutBuffer] | None = GroupRolloutBuffer


def build_algorithm(
    config: AlgorithmConfig, env: VecEnv, learning: PolicySettings
) -> BaseAlgorithm:
    """Build an algorithm whose networks have separate weights for each layer and share none.

    Actor and critic, or network and target, are separate; only a recurrent one's memory is shared
    by all layers.

    Args:
        config: Hyperparameters; their type selects the algorithm.
        env: The batched environment; environments of one group are consecutive.
        learning: The gate's size and how its advantages are made.

    Raises:
        ConfigError: If the environments do not divide into groups, or the algorithm compares none.
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
        gamma=1.0,  # an episode is a handful of layers and its end is what counts
        seed=learning.seed,
        device=learning.device,
        **arguments,
    )


def _on_policy_arguments(
    config: OnPolicyConfig,
    env: VecEnv,
    learning: PolicySettings,
    buffer: type[GroupRolloutBuffer] | None,
) -> dict[str, Any]:
    """Return the arguments of an algorithm with an actor, a critic and a rollout."""
    grouped = learning.group_size > 1 or learning.sync_episodes
    groups = {
        "group_size": learning.group_size,
        "sync_episodes": learning.sync_episodes,
    }
    arguments: dict[str, Any] = {
        "n_steps": learning.n_steps,
        "gae_lambda": config.gae_lambda,
        # The useful size of a reward difference depends on the weights that the user chose.
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
        "share_features_extractor": False,  # only the actor ships: the critic must not shape it
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
    """Return the arguments of an algorithm that learns from a replay buffer."""
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
        # Once per update: the target is fixed while the network moves, and an episode is short.
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
    """RecurrentPPO with the argument for a rollout buffer that other on-policy algorithms have.

    Args:
        rollout_buffer_class: ``None`` for upstream's.
        rollout_buffer_kwargs: Its further arguments.
        args: What ``RecurrentPPO`` takes.
        kwargs: Further ones.
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
    """TRPO without an update if all advantages are equal, where its line search divides by zero."""

    def train(self) -> None:
        """Update the policy from the rollout, if there is anything to learn from it."""
        if np.ptp(self.rollout_buffer.advantages) > 0.0:
            super().train()


ALGORITHMS: Mapping[AlgorithmName, _Algorithm] = {
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
}
