"""Group-relative advantages for on-policy algorithms, with one baseline per input."""

from collections.abc import Generator
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
    """Return the sum of rewards from each step to the end of its episode, ``[steps, envs]``.

    ``last_values`` complete the episodes that have not ended, where ``last_dones`` is 0.
    """
    returns = np.empty_like(rewards)
    following = last_values * (1.0 - last_dones)
    for step in reversed(range(len(rewards))):
        returns[step] = rewards[step] + gamma * following
        following = returns[step] * (1.0 - episode_starts[step])
    return returns


def leave_one_out_baseline(returns: Float32, group: int) -> Float32:
    """Return the mean return of the input's other rollouts, ``[steps, envs]``.

    ``group`` consecutive environments have one input. A rollout's baseline does not depend on its
    own actions, so the policy gradient keeps its expectation; subtracting the mean of all rollouts
    would shrink it by ``1 - 1 / group``.
    """
    grouped = returns.reshape(len(returns), -1, group)  # [steps, images, group]
    others = (grouped.sum(axis=2, keepdims=True) - grouped) / (group - 1)
    baseline: Float32 = others.reshape(returns.shape)
    return baseline


def early_exit_baseline(
    returns: Float32, rewards: Float32, padding: NDArray[np.bool_], group: int
) -> Float32:
    """Return ``leave_one_out_baseline`` for episodes of different lengths.

    The baseline is the mean return of the other rollouts that reach the layer. If none does, it is
    the mean return of their whole episodes minus the rollout's rewards before the layer. Neither
    depends on the next action. Arrays are ``[layers, envs]``; the result is undefined in padding.
    """
    parts = (len(returns), -1, group)
    active = (~padding).reshape(parts)  # [layers, images, group]
    grouped = returns.reshape(parts) * active
    others = active.sum(axis=2, keepdims=True) - active
    at_layer = (grouped.sum(axis=2, keepdims=True) - grouped) / np.maximum(others, 1)
    earned = rewards.cumsum(axis=0) - rewards  # before each step
    whole = leave_one_out_baseline(returns[:1], group) - earned
    baseline: Float32 = np.where(others > 0, at_layer, whole.reshape(parts))
    return baseline.reshape(returns.shape)


class GroupRolloutBuffer(DictRolloutBuffer):
    """Rollout buffer with leave-one-out baselines over the rollouts of one input.

    The difficulty of an input dominates its reward, the choice of options changes it little, and a
    learned value function predicts difficulty only in part. Rollouts of one input share their
    difficulty, so it cancels; in exchange an update sees fewer inputs.

    With ``sync_episodes`` a rollout is one episode of each environment. Padding steps after the end
    of an episode, see ``SB3GatingVecEnv``, are excluded from updates.

    ``group_size`` consecutive environments have one input; it divides ``n_envs``. With 1 advantages
    are Stable-Baselines3's, else ``gae_lambda`` is unused.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - passed on
        group_size: int,
        sync_episodes: bool = False,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> None:
        super().__init__(*args, **kwargs)
        if group_size < 1 or self.n_envs % group_size != 0:
            raise ConfigError(
                f"num_envs is {self.n_envs} and group_size is {group_size}; group_size must be at "
                "least 1 and divide num_envs."
            )
        self.group_size = group_size
        self.sync_episodes = sync_episodes
        self._active: NDArray[np.bool_] = np.ones(0, dtype=np.bool_)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill ``returns`` (the value function's target) and ``advantages`` from the rewards."""
        padding = np.zeros(self.rewards.shape, dtype=np.bool_)
        if self.sync_episodes:  # every episode starts at the first step and is padded at its end
            padding[1:] = self.episode_starts[1:].cumsum(axis=0) > 0
            self.episode_starts[padding] = 1.0  # separates padding from the episode
            dones = dones | padding[-1]
        self._active = ~padding.T.reshape(-1)  # in the order of minibatches, [envs * layers]
        if self.group_size == 1:
            super().compute_returns_and_advantage(last_values, dones)
            return
        self.returns = returns_to_go(
            self.rewards,
            self.episode_starts,
            last_values.detach().cpu().numpy().reshape(-1).astype(np.float32),
            dones.astype(np.float32),
            gamma=self.gamma,
        )
        baseline = (
            early_exit_baseline(self.returns, self.rewards, padding, self.group_size)
            if self.sync_episodes
            else leave_one_out_baseline(self.returns, self.group_size)
        )
        self.advantages = self.returns - baseline

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield minibatches without their padding steps; empty ones are skipped."""
        return (samples for samples in super().get(batch_size) if samples is not None)

    def _get_samples(
        self,
        batch_inds: NDArray[np.int64],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        batch_inds = batch_inds[self._active[batch_inds]]
        return super()._get_samples(batch_inds, *args, **kwargs) if len(batch_inds) else None


class MaskableGroupRolloutBuffer(GroupRolloutBuffer, MaskableDictRolloutBuffer):
    """Group rollout buffer for ``MaskablePPO``, which also stores action masks."""


class RecurrentGroupRolloutBuffer(GroupRolloutBuffer, RecurrentDictRolloutBuffer):
    """Group rollout buffer for ``RecurrentPPO``, which also stores LSTM states."""
