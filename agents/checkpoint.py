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
    """An environment that can be put back to where it was."""

    def get_state(self) -> dict[str, Any]:
        """Return where the environment stands, as JSON values."""
        ...

    def set_state(self, state: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Go back to a state of ``get_state``, and return the observations at that time."""
        ...


def capture(model: BaseAlgorithm) -> Checkpoint:
    """Return a model's state between two updates.

    Random streams and schedules are not part of it: they follow from the seed and the steps made.

    Args:
        model: An algorithm over a ``ResumableEnv`` that has begun to learn.
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
    """Put a new model, built from the same configuration, where ``capture`` found the old one.

    Continue with ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)``.

    Raises:
        CheckpointError: If the checkpoint belongs to another configuration.
    """
    tensors, state = checkpoint
    try:
        model.policy.load_state_dict(_under("policy", tensors))
        check_finite(model.policy, "the checkpoint")
        restore_optimizer(model.policy.optimizer, tensors, "optimizer")
        model._last_obs = cast("ResumableEnv", model.get_env()).set_state(
            cast("dict[str, Any]", state["env"])
        )
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)  # updates are whole episodes
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
