"""Several rollouts of one image as each other's baseline: group-relative advantages for any on-policy algorithm."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer
from torch import Tensor

from dfs_rl.errors import ConfigError

Float32 = NDArray[np.float32]


def returns_to_go(
    rewards: Float32,
    episode_starts: Float32,
    last_values: Float32,
    last_dones: Float32,
    *,
    gamma: float,
) -> Float32:
    """Sum what each step still earns within its episode.

    Args:
        rewards: ``[steps, envs]``.
        episode_starts: 1 where a step is the first of its episode, ``[steps, envs]``.
        last_values: Estimated worth of the state after the last step, ``[envs]``; used only where the episode goes on.
        last_dones: 1 where the last step ended its episode, ``[envs]``.
        gamma: Discount per step.

    Returns:
        ``[steps, envs]``.
    """
    returns = np.empty_like(rewards)
    following = last_values * (1.0 - last_dones)
    for step in reversed(range(len(rewards))):
        returns[step] = rewards[step] + gamma * following
        following = returns[step] * (1.0 - episode_starts[step])
    return returns


def leave_one_out_baseline(returns: Float32, group: int) -> Float32:
    """Average, for every rollout, what the other rollouts of the same image earn from the same layer on.

    A rollout's own return takes no part in its baseline, so the baseline cannot depend on its actions and the policy gradient keeps its
    expectation; subtracting the mean of all would shrink it by ``1 - 1 / group``.

    Args:
        returns: ``[steps, envs]``; environments ``k * group`` to ``(k + 1) * group - 1`` show the same image.
        group: Rollouts of one image, at least 2.

    Returns:
        ``[steps, envs]``.
    """
    grouped = returns.reshape(len(returns), -1, group)  # [steps, images, group]
    others = (grouped.sum(axis=2, keepdims=True) - grouped) / (group - 1)
    baseline: Float32 = others.reshape(returns.shape)
    return baseline


class GroupRolloutBuffer(DictRolloutBuffer):
    """A rollout buffer in which an advantage is a return minus the mean return of the image's other rollouts.

    An image's difficulty dominates its reward: how well its options were chosen is a small difference beside it, which a learned
    value function of the pooled channels does not resolve. Rollouts of the same image share the difficulty, so it cancels.

    Args:
        args: What the buffers of Stable-Baselines3 take. ``n_envs`` must be a multiple of ``images_per_group``, and ``gae_lambda``
            is not used: returns are not bootstrapped.
        images_per_group: Rollouts of one image, in consecutive environments, at least 2.
        kwargs: Further ones.

    Raises:
        ConfigError: If the environments cannot be divided into such groups.
    """

    def __init__(self, *args: Any, images_per_group: int, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        check_groups(self.n_envs, images_per_group)
        if images_per_group == 1:
            raise ConfigError(
                "images_per_group is 1, which leaves no other rollout to compare with; use a plain rollout buffer."
            )
        self.images_per_group = images_per_group

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill ``returns`` (the value function's target) and ``advantages`` from the rewards.

        Args:
            last_values: Estimated worth of the state after the last step, ``[envs, 1]``.
            dones: Whether the last step ended its episode, bool ``[envs]``.
        """
        self.returns = returns_to_go(
            self.rewards,
            self.episode_starts,
            last_values.detach().cpu().numpy().reshape(-1).astype(np.float32),
            dones.astype(np.float32),
            gamma=self.gamma,
        )
        self.advantages = self.returns - leave_one_out_baseline(self.returns, self.images_per_group)


class MaskableGroupRolloutBuffer(GroupRolloutBuffer, MaskableDictRolloutBuffer):
    """The same for ``MaskablePPO``: it remembers which options were allowed as well."""


class RecurrentGroupRolloutBuffer(GroupRolloutBuffer, RecurrentDictRolloutBuffer):
    """The same for ``RecurrentPPO``: it remembers the policy's memory as well."""


def check_groups(n_envs: int, images_per_group: int) -> None:
    """Refuse a number of environments that does not divide into groups.

    Raises:
        ConfigError: If ``images_per_group`` is below 1 or does not divide ``n_envs``.
    """
    if images_per_group < 1 or n_envs % images_per_group != 0:
        raise ConfigError(
            f"num_envs is {n_envs} and images_per_group is {images_per_group}; images_per_group must be at least 1 and divide num_envs."
        )
