"""State of a reinforcement learning algorithm between two updates, as tensors and JSON."""

from typing import Any, cast

import numpy as np
from gymnasium.error import InvalidAction
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from dfs_rl.agents.q_learning import replay_tensors, restore_replay
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.errors import CheckpointError
from dfs_rl.utils.checkpoint import (
    Checkpoint,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
)

_MISFITS = (LookupError, RuntimeError, ValueError, TypeError, OverflowError, InvalidAction)


def capture(model: BaseAlgorithm) -> Checkpoint:
    """Return the state between two updates; random streams follow from seed and step count."""
    tensors = module_tensors(model.policy, "policy")
    tensors |= optimizer_tensors(model.policy.optimizer, "optimizer")
    env = model.get_env()
    assert isinstance(env, SB3GatingVecEnv)
    state = {"timesteps": model.num_timesteps, "updates": model._n_updates, "env": env.get_state()}
    if isinstance(model, OffPolicyAlgorithm):
        assert isinstance(model.replay_buffer, DictReplayBuffer)
        tensors |= replay_tensors(model.replay_buffer, "replay")
        state["replay"] = model.replay_buffer.pos
    return Checkpoint(tensors=tensors, state=state)


def restore(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Restore a captured state in a new algorithm; CheckpointError if it does not fit."""
    tensors, state = checkpoint
    try:
        restore_module(model.policy, tensors, "policy")
        restore_optimizer(model.policy.optimizer, tensors, "optimizer")
        env = model.get_env()
        assert isinstance(env, SB3GatingVecEnv)
        model._last_obs = env.set_state(cast("dict[str, Any]", state["env"]))
        # Updates consist of whole episodes.
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
        model.num_timesteps = cast("int", state["timesteps"])
        model._n_updates = cast("int", state["updates"])
        if isinstance(model, OffPolicyAlgorithm):
            assert isinstance(model.replay_buffer, DictReplayBuffer)
            position = cast("int", state["replay"])
            restore_replay(model.replay_buffer, tensors, "replay", position=position)
    except _MISFITS as error:
        reason = " ".join(str(error).split())
        sentence = f"the checkpoint does not fit this run's configuration: {reason}."
        raise CheckpointError(sentence) from error
