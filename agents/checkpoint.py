"""State of a reinforcement learning algorithm between two updates, as tensors and JSON."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from gymnasium.error import InvalidAction
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from dfs_rl.agents.q_learning import replay_tensors, restore_replay
from dfs_rl.errors import CheckpointError
from dfs_rl.utils.checkpoint import (
    Checkpoint,
    check_finite,
    optimizer_tensors,
    restore_optimizer,
)


class ResumableEnv(Protocol):
    """Environment with a state that can be saved and restored."""

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environment, as JSON values."""
        ...

    def set_state(self, state: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Restore a state from ``get_state``, and return its observations."""
        ...


def capture(model: BaseAlgorithm) -> Checkpoint:
    """Return the state of an algorithm between two updates.

    Random streams and schedules are not part of it: they follow from the seed and the step count.

    Args:
        model: An algorithm over a ``ResumableEnv`` whose training has started.
    """
    tensors = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    tensors |= optimizer_tensors(model.policy.optimizer, "optimizer")
    state = {
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "env": cast("ResumableEnv", model.get_env()).get_state(),
    }
    if isinstance(model, OffPolicyAlgorithm):
        assert isinstance(model.replay_buffer, DictReplayBuffer)
        tensors |= replay_tensors(model.replay_buffer, "replay")
        state["replay"] = model.replay_buffer.pos
    return Checkpoint(tensors=tensors, state=state)


def restore(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Restore the state from ``capture`` in a new algorithm with the same configuration.

    Continue with ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)``.

    Args:
        model: The new algorithm.
        checkpoint: The state to restore.

    Raises:
        CheckpointError: If the checkpoint does not fit the configuration.
    """
    tensors, state = checkpoint
    try:
        model.policy.load_state_dict(_under("policy", tensors))
        check_finite(model.policy, "the checkpoint")
        restore_optimizer(model.policy.optimizer, tensors, "optimizer")
        model._last_obs = cast("ResumableEnv", model.get_env()).set_state(
            cast("dict[str, Any]", state["env"])
        )
        # Updates consist of whole episodes.
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
        model.num_timesteps = cast("int", state["timesteps"])
        model._n_updates = cast("int", state["updates"])
        if isinstance(model, OffPolicyAlgorithm):
            assert isinstance(model.replay_buffer, DictReplayBuffer)
            position = cast("int", state["replay"])
            restore_replay(model.replay_buffer, tensors, "replay", position=position)
    except (
        LookupError,
        RuntimeError,
        ValueError,
        TypeError,
        OverflowError,
        InvalidAction,
    ) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint does not fit this run's configuration: {reason}."
        ) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
