"""The learning algorithms by name, and how to build one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.extractor import LayerwiseExtractor
from agents.group_buffer import GroupRolloutBuffer, check_groups
from agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    AlgorithmName,
    PPOConfig,
    step_sizes,
)
from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GateLearning:
    """What every algorithm needs to know about the gate it learns.

    Attributes:
        feature_sizes: Numbers that describe each gated layer's input.
        hidden: Width of each layer's own hidden layer, in actor and critic.
        images_per_group: Rollouts of one image that share a baseline; 1 uses the critic instead.
        seed: Seed of the weights, of the sampled actions and of the minibatches.
        device: Where the policy lives.
        timesteps: Length of the whole training, which the default step size follows.
    """

    feature_sizes: tuple[int, ...]
    hidden: int
    images_per_group: int
    seed: int
    device: str
    timesteps: int

    @property
    def n_steps(self) -> int:
        """Steps per environment and update: one episode, one step per gated layer."""
        return len(self.feature_sizes)


def build_algorithm(
    config: AlgorithmConfig, env: VecEnv, learning: GateLearning
) -> OnPolicyAlgorithm:
    """Build an algorithm whose actor and critic are separate layer-wise networks.

    Args:
        config: Hyperparameters; their type says which algorithm.
        env: The batched environment, its layers in lock-step; environments of one group are consecutive.
        learning: The gate's size and how its advantages are made.

    Raises:
        ConfigError: If the environments do not divide into groups.
    """
    check_groups(env.num_envs, learning.images_per_group)
    assert isinstance(env.action_space, spaces.Discrete)
    options = int(env.action_space.n)
    entry = next(entry for entry in ALGORITHMS.values() if isinstance(config, entry.config_type))
    grouped = learning.images_per_group > 1
    model = entry.algorithm(
        "MultiInputPolicy",
        env,
        n_steps=learning.n_steps,
        gamma=1.0,  # an episode is a handful of layers and its end is what counts
        seed=learning.seed,
        device=learning.device,
        rollout_buffer_class=GroupRolloutBuffer if grouped else None,
        rollout_buffer_kwargs={"images_per_group": learning.images_per_group} if grouped else None,
        policy_kwargs=_policy_kwargs(
            learning.feature_sizes, hidden=learning.hidden, options=options
        ),
        **_shared_arguments(config, learning.timesteps),
        **entry.arguments(config, env.num_envs * learning.n_steps),
    )
    action_net = model.policy.action_net
    assert isinstance(action_net, nn.Linear)
    # The extractor's scores are the logits already: each layer's own weights decide alone, nothing is shared.
    with torch.no_grad():
        action_net.weight.copy_(torch.eye(options))
        action_net.bias.zero_()
    action_net.requires_grad_(requires_grad=False)
    return model


def entropy_weight(config: AlgorithmConfig, progress: float) -> float:
    """Weight of the entropy bonus after a share ``progress`` of training, in [0, 1]."""
    return config.entropy * max(0.0, 1.0 - progress)


@dataclass(frozen=True)
class _Algorithm:
    """How a name on the command line becomes an SB3 algorithm.

    Attributes:
        algorithm: The class, used as it is.
        config_type: Its hyperparameters.
        arguments: Translates those that other algorithms lack, with the number of samples per update, to keyword arguments.
    """

    algorithm: Callable[..., OnPolicyAlgorithm]
    config_type: type[AlgorithmConfig]
    arguments: Callable[[Any, int], Mapping[str, Any]]


def _shared_arguments(config: AlgorithmConfig, timesteps: int) -> dict[str, Any]:
    start, end = step_sizes(config, timesteps)
    return {
        "learning_rate": lambda remaining: end + (start - end) * max(0.0, remaining),
        "ent_coef": config.entropy,
        "gae_lambda": config.gae_lambda,
        "vf_coef": config.value_weight,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": True,  # the useful size of a reward difference depends on the weights the user chose
    }


def _ppo_arguments(config: PPOConfig, samples: int) -> Mapping[str, Any]:
    if samples % config.minibatches != 0 or samples == config.minibatches:
        raise ConfigError(
            f"ppo.minibatches is {config.minibatches}; it must divide the {samples} samples "
            "of an update (num_envs x layers) into batches of at least 2."
        )
    return {
        "n_epochs": config.epochs,
        "batch_size": samples // config.minibatches,
        "clip_range": config.clip_range,
    }


def _a2c_arguments(config: A2CConfig, samples: int) -> Mapping[str, Any]:
    del config, samples  # A2C takes one step on all of them
    return {}


ALGORITHMS: Mapping[AlgorithmName, _Algorithm] = {
    "ppo": _Algorithm(PPO, PPOConfig, _ppo_arguments),
    "a2c": _Algorithm(A2C, A2CConfig, _a2c_arguments),
}


def _policy_kwargs(feature_sizes: Sequence[int], *, hidden: int, options: int) -> dict[str, Any]:
    return {
        "net_arch": {"pi": [], "vf": []},  # the extractor is the whole network
        "share_features_extractor": False,  # only the actor ships, so the critic must not shape it
        "features_extractor_class": LayerwiseExtractor,
        "features_extractor_kwargs": {
            "feature_sizes": tuple(feature_sizes),
            "hidden": hidden,
            "outputs": options,
        },
    }
