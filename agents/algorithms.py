"""The learning algorithms by name, and how to build one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

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
    TRPOConfig,
    UpdateSize,
    batch_size,
    check_rollouts,
    entropy_weight,
    step_sizes,
)
from dfs_rl.agents.policies import LayerwiseEmbedding, LayerwiseExtractor
from dfs_rl.agents.q_learning import WalkDQN, WalkQRDQN
from dfs_rl.envs.spaces import observation_bytes


@dataclass(frozen=True, kw_only=True)
class GateLearning:
    """What every algorithm needs to know about the gate it learns.

    Attributes:
        feature_sizes: Numbers that describe each gated layer's input.
        hidden: Width of each layer's own hidden layer, in all networks.
        images_per_group: Rollouts of one image that share a baseline; 1 uses no such baseline.
        whole_walks: Whether walks that left early rest until the others have come to the end.
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
    whole_walks: bool = False

    @property
    def n_steps(self) -> int:
        """Steps per environment and update: one episode, one step per gated layer."""
        return len(self.feature_sizes)


def build_algorithm(config: AlgorithmConfig, env: VecEnv, learning: GateLearning) -> BaseAlgorithm:
    """Build an algorithm whose actor and critic, or target, are separate networks with weights of their own for every layer.

    A recurrent one's memory alone is shared by all layers.

    Args:
        config: Hyperparameters; their type says which algorithm.
        env: The batched environment, its layers in lock-step; environments of one group are consecutive.
        learning: The gate's size and how its advantages are made.

    Raises:
        ConfigError: If the environments do not divide into groups, or the algorithm has no use for them.
    """
    check_rollouts(config, learning.images_per_group)
    check_groups(env.num_envs, learning.images_per_group)
    entry = next(entry for entry in ALGORITHMS.values() if type(config) is entry.config_type)
    start, end = step_sizes(config, learning.timesteps)
    model = entry.algorithm(
        entry.policy,
        env,
        learning_rate=lambda remaining: end + (start - end) * max(0.0, remaining),
        gamma=1.0,  # an episode is a handful of layers and its end is what counts
        seed=learning.seed,
        device=learning.device,
        **entry.arguments(config, env, learning),
    )
    entry.finish(model)
    return model


def _on_policy(
    config: OnPolicyConfig,
    env: VecEnv,
    learning: GateLearning,
    buffer: type[GroupRolloutBuffer] = GroupRolloutBuffer,
) -> dict[str, Any]:
    """Arguments of all algorithms with an actor, a critic and a rollout."""
    own_buffer = learning.images_per_group > 1 or learning.whole_walks
    return {
        "n_steps": learning.n_steps,
        "gae_lambda": config.gae_lambda,
        "normalize_advantage": True,  # the useful size of a reward difference depends on the weights the user chose
        "rollout_buffer_class": buffer if own_buffer else None,
        "rollout_buffer_kwargs": {
            "images_per_group": learning.images_per_group,
            "whole_walks": learning.whole_walks,
        }
        if own_buffer
        else None,
        "policy_kwargs": {
            "net_arch": {"pi": [], "vf": []},  # the extractor is the whole network
            "share_features_extractor": False,  # only the actor ships, so the critic must not shape it
            **_extractor(learning, outputs=_options(env)),
        },
    }


def _policy_gradient(config: PolicyGradientConfig) -> dict[str, Any]:
    return {
        "ent_coef": entropy_weight(config, 0.0),
        "vf_coef": config.value_weight,
        "max_grad_norm": config.max_grad_norm,
    }


def _ppo(
    config: PPOConfig,
    env: VecEnv,
    learning: GateLearning,
    buffer: type[GroupRolloutBuffer] = GroupRolloutBuffer,
) -> dict[str, Any]:
    return {
        **_on_policy(config, env, learning, buffer),
        **_policy_gradient(config),
        "n_epochs": config.epochs,
        "batch_size": batch_size(config.minibatches, _update_size(env, learning)),
        "clip_range": config.clip_range,
    }


def _maskable_ppo(config: MaskablePPOConfig, env: VecEnv, learning: GateLearning) -> dict[str, Any]:
    return _ppo(config, env, learning, MaskableGroupRolloutBuffer)


def _a2c(config: A2CConfig, env: VecEnv, learning: GateLearning) -> dict[str, Any]:
    return _on_policy(config, env, learning) | _policy_gradient(config)


def _recurrent_ppo(
    config: RecurrentPPOConfig, env: VecEnv, learning: GateLearning
) -> dict[str, Any]:
    arguments = _ppo(config, env, learning, RecurrentGroupRolloutBuffer)
    arguments["policy_kwargs"] |= {
        "features_extractor_class": LayerwiseEmbedding,
        "features_extractor_kwargs": {
            "feature_sizes": learning.feature_sizes,
            "outputs": learning.hidden,
        },
        "lstm_hidden_size": learning.hidden,
    }
    return arguments


def _trpo(config: TRPOConfig, env: VecEnv, learning: GateLearning) -> dict[str, Any]:
    return {
        **_on_policy(config, env, learning),
        "target_kl": config.target_kl,
        "n_critic_updates": config.critic_updates,
        "batch_size": batch_size(config.minibatches, _update_size(env, learning)),
    }


class GroupRecurrentPPO(RecurrentPPO):
    """RecurrentPPO whose rollouts go where other on-policy algorithms would be told to put them.

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


class CalmTRPO(TRPO):
    """TRPO that leaves the policy alone where no choice turned out better than another; its line search divides by zero there."""

    def train(self) -> None:
        """Update the policy from the rollout, if there is anything to learn from it."""
        if np.ptp(self.rollout_buffer.advantages) > 0.0:
            super().train()


def _dqn(
    config: QLearningConfig, env: VecEnv, learning: GateLearning, quantiles: int = 1
) -> dict[str, Any]:
    return {
        "buffer_size": config.remembered(_update_size(env, learning)),
        "learning_starts": 0,
        "batch_size": config.batch_size,
        "train_freq": learning.n_steps,
        "gradient_steps": config.gradient_steps,
        # Once per update: the target stands still while the network moves, and the end of a walk is a handful of layers away.
        "target_update_interval": env.num_envs * learning.n_steps,
        "tau": 1.0,
        "exploration_fraction": config.exploration,
        "exploration_initial_eps": 1.0,
        "exploration_final_eps": config.final_exploration,
        "max_grad_norm": config.max_grad_norm,
        "policy_kwargs": {
            "net_arch": [],  # the extractor is the whole network
            **_extractor(learning, outputs=quantiles * _options(env)),
        },
    }


def _qrdqn(config: QRDQNConfig, env: VecEnv, learning: GateLearning) -> dict[str, Any]:
    arguments = _dqn(config, env, learning, config.quantiles)
    arguments["policy_kwargs"]["n_quantiles"] = config.quantiles
    return arguments


def _remove_action_head(model: Any) -> None:  # noqa: ANN401 - one of several classes with such a policy
    """Let the extractor's scores be the logits: each layer's own weights decide alone, nothing is shared.

    What takes its place has no parameters, because TRPO differentiates by all that the policy has.
    """
    policy: ActorCriticPolicy = model.policy
    policy.action_net = nn.Identity()
    _renew_optimizer(policy, policy)


def _begin_indifferent(model: RecurrentPPO) -> None:
    """Let the memory's scores begin at zero, as those of the other gates do; its head is shared by all layers, as in DFS."""
    assert isinstance(model.policy.action_net, nn.Linear)
    nn.init.zeros_(model.policy.action_net.weight)


def _remove_q_heads(model: DQN) -> None:
    """The same for the network that learns and for its target."""
    policy = model.policy
    policy.q_net.q_net = policy.q_net_target.q_net = nn.Sequential()
    _renew_optimizer(policy, policy.q_net)


def _remove_quantile_heads(model: QRDQN) -> None:
    """The same for networks of quantiles."""
    policy = model.policy
    policy.quantile_net.quantile_net = policy.quantile_net_target.quantile_net = nn.Sequential()
    _renew_optimizer(policy, policy.quantile_net)


def _renew_optimizer(policy: BasePolicy, learner: nn.Module) -> None:
    """Give the policy an optimiser over what ``learner`` has now."""
    policy.optimizer = policy.optimizer_class(
        learner.parameters(),
        lr=policy.optimizer.param_groups[0]["lr"],  # type: ignore[call-arg] # all but the base class have one
        **policy.optimizer_kwargs,
    )


@dataclass(frozen=True)
class _Algorithm:
    """How a name on the command line becomes an SB3 algorithm.

    Attributes:
        algorithm: The class.
        config_type: Its hyperparameters.
        arguments: Translates them, for an environment and a gate, to keyword arguments that not all algorithms take.
        finish: Changes in the new algorithm's policy what its class would have otherwise.
        policy: The class's name for policies of several inputs.
    """

    algorithm: Callable[..., BaseAlgorithm]
    config_type: type[AlgorithmConfig]
    arguments: Callable[[Any, VecEnv, GateLearning], Mapping[str, Any]]
    finish: Callable[[Any], None] = _remove_action_head
    policy: str = "MultiInputPolicy"


ALGORITHMS: Mapping[AlgorithmName, _Algorithm] = {
    "ppo": _Algorithm(PPO, PPOConfig, _ppo),
    "a2c": _Algorithm(A2C, A2CConfig, _a2c),
    "maskable_ppo": _Algorithm(MaskablePPO, MaskablePPOConfig, _maskable_ppo),
    "trpo": _Algorithm(CalmTRPO, TRPOConfig, _trpo),
    "recurrent_ppo": _Algorithm(
        GroupRecurrentPPO,
        RecurrentPPOConfig,
        _recurrent_ppo,
        _begin_indifferent,
        policy="MultiInputLstmPolicy",
    ),
    "dqn": _Algorithm(WalkDQN, DQNConfig, _dqn, _remove_q_heads),
    "qrdqn": _Algorithm(WalkQRDQN, QRDQNConfig, _qrdqn, _remove_quantile_heads),
}


def _extractor(learning: GateLearning, *, outputs: int) -> dict[str, Any]:
    return {
        "features_extractor_class": LayerwiseExtractor,
        "features_extractor_kwargs": {
            "feature_sizes": learning.feature_sizes,
            "hidden": learning.hidden,
            "outputs": outputs,
        },
    }


def _options(env: VecEnv) -> int:
    assert isinstance(env.action_space, spaces.Discrete)
    return int(env.action_space.n)


def _update_size(env: VecEnv, learning: GateLearning) -> UpdateSize:
    assert isinstance(env.observation_space, spaces.Dict)
    return UpdateSize(env.num_envs, learning.n_steps, observation_bytes(env.observation_space))
