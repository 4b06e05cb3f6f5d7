"""Construction of reinforcement learning algorithms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import TRPO, RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dfs_rl.agents.buffers import RecurrentGroupRolloutBuffer
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    OnPolicyConfig,
    Start,
    resolved_group_size,
)
from dfs_rl.agents.policies import PerLayerEmbedding, PerLayerExtractor
from dfs_rl.envs.spaces import observation_bytes


def build_algorithm(
    config: AlgorithmConfig,
    env: VecEnv,
    *,
    feature_sizes: Sequence[int],
    hidden: int,
    timesteps: int,
    start: Start = "indifferent",
    group_size: int = 1,
    sync_episodes: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> BaseAlgorithm:
    """Build an algorithm whose networks have separate weights for each layer.

    Only the LSTM of a recurrent policy is shared by all layers. Actor and critic, or network and
    target network, share no weights. An update is one episode of each environment.

    Args:
        config: Hyperparameters; their type selects the algorithm.
        env: The batched environment; environments of one group are consecutive.
        feature_sizes: Number of features of each decision's input: one for each gated layer and,
            with several passes, 0 for the end of a pass.
        hidden: Width of each layer's hidden layer, in all networks.
        timesteps: Length of the whole training, which sets defaults.
        start: Initial policy of the gate, which sets defaults too.
        group_size: Rollouts of one image that share a baseline.
        sync_episodes: True if environments that exit early wait for the end of all episodes.
        seed: Seed of weights, actions and minibatches.
        device: Where the policy computes.

    Raises:
        ConfigError: If the environments do not divide into groups, or the algorithm has none.
    """
    resolved_group_size(config, group_size, start=start)
    assert isinstance(env.observation_space, spaces.Dict)
    assert isinstance(env.action_space, spaces.Discrete)
    n_steps = len(feature_sizes)
    n_envs, seen = env.num_envs, observation_bytes(env.observation_space)
    arguments = asdict(config.resolve(n_envs, n_steps, seen, timesteps=timesteps, start=start))
    first, last = arguments.pop("learning_rate"), arguments.pop("final_learning_rate")
    policy: dict[str, Any] = {}
    if "n_quantiles" in arguments:
        policy["n_quantiles"] = arguments.pop("n_quantiles")
    outputs = int(env.action_space.n) * policy.get("n_quantiles", 1)
    extractor: dict[str, Any] = {"feature_sizes": feature_sizes}
    if config.gate == "lstm":
        policy["features_extractor_class"] = PerLayerEmbedding
        policy["features_extractor_kwargs"] = extractor | {"outputs": hidden}
        policy["lstm_hidden_size"] = hidden
    else:
        policy["features_extractor_class"] = PerLayerExtractor
        policy["features_extractor_kwargs"] = extractor | {"hidden": hidden, "outputs": outputs}
    if isinstance(config, OnPolicyConfig):
        policy["net_arch"] = {"pi": [], "vf": []}  # the extractor is the whole network
        policy["share_features_extractor"] = False  # the critic must not shape the deployed actor
        arguments["n_steps"] = n_steps
        # The scale of rewards depends on the reward weights that the user chooses.
        arguments["normalize_advantage"] = True
        if group_size > 1 or sync_episodes:
            grouping = {"group_size": group_size, "sync_episodes": sync_episodes}
            arguments["rollout_buffer_class"] = resolve_name(config.rollout_buffer)
            arguments["rollout_buffer_kwargs"] = grouping
    else:
        policy["net_arch"] = []  # the extractor is the whole network
        arguments |= {
            "learning_starts": 0,
            "train_freq": n_steps,
            # Once per update, so that the target is fixed during an update.
            "target_update_interval": n_envs * n_steps,
            "tau": 1.0,
            "exploration_initial_eps": 1.0,
        }
    algorithm: BaseAlgorithm = resolve_name(config.algorithm)(
        resolve_name(config.policy),
        env,
        learning_rate=lambda remaining: last + (first - last) * max(0.0, remaining),
        gamma=1.0,  # episodes are short and most of the reward comes at their end
        seed=seed,
        device=device,
        policy_kwargs=policy,
        **arguments,
    )
    return algorithm


class GroupRecurrentPPO(RecurrentPPO):
    """RecurrentPPO with a configurable rollout buffer, like the other on-policy algorithms."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - passed on
        rollout_buffer_class: type[RecurrentGroupRolloutBuffer] | None = None,
        rollout_buffer_kwargs: Mapping[str, Any] | None = None,
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
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
                **(rollout_buffer_kwargs or {}),
            )


class SafeTRPO(TRPO):
    """TRPO that skips updates with equal advantages, on which its line search divides by zero."""

    def train(self) -> None:
        """Update the policy unless all advantages are equal."""
        if np.ptp(self.rollout_buffer.advantages) > 0.0:
            super().train()
