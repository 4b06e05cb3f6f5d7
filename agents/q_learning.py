"""DQN and QR-DQN with exploration per environment, and checkpointing of their replay buffer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer
from torch import Tensor


class PerEnvExplorationMixin:
    """Mixin that samples exploration for each environment separately.

    Stable-Baselines3 samples once for all environments. All environments are at the same layer
    here, so one sample would make the whole layer random or greedy.
    """

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,  # noqa: FBT001, FBT002 - upstream's signature
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return greedy actions; unless ``deterministic``, replace some by random actions."""
        model: Any = self
        actions, state = model.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            rate = model.exploration_schedule(model._current_progress_remaining)
            explores = np.random.random_sample(actions.shape) < rate  # noqa: NPY002
            random = np.random.randint(model.action_space.n, size=actions.shape)  # noqa: NPY002
            actions = np.where(explores, random, actions)
        return actions, state


class PerEnvExplorationDQN(PerEnvExplorationMixin, DQN):
    """DQN with exploration per environment."""


class PerEnvExplorationQRDQN(PerEnvExplorationMixin, QRDQN):
    """QR-DQN with exploration per environment."""


def replay_tensors(buffer: DictReplayBuffer, prefix: str) -> dict[str, Tensor]:
    """Return the buffer's rows as views, ``prefix.<part>`` ``[rows, envs, ...]``."""
    rows = buffer.buffer_size if buffer.full else buffer.pos
    return {
        f"{prefix}.{name}": torch.from_numpy(part[:rows]) for name, part in _parts(buffer).items()
    }


def restore_replay(
    buffer: DictReplayBuffer, tensors: Mapping[str, Tensor], prefix: str, *, position: int
) -> None:
    """Restore an empty buffer of the same size; ``position`` is the ``pos`` of the stored one.

    Raises:
        KeyError: If a part is missing.
        ValueError: If a part has a different shape, or ``position`` contradicts the rows.
    """
    for name, part in _parts(buffer).items():
        kept = tensors[f"{prefix}.{name}"].numpy()
        if kept.shape[1:] != part.shape[1:]:
            raise ValueError(f"{prefix}.{name} has the shape {list(kept.shape)}")
        part[: len(kept)] = kept
    buffer.full = len(kept) == buffer.buffer_size
    if position >= buffer.buffer_size or (not buffer.full and position != len(kept)):
        raise ValueError(f"{prefix} has position {position}, but {len(kept)} rows")
    buffer.pos = position


def _parts(buffer: DictReplayBuffer) -> dict[str, np.ndarray]:
    parts = {"actions": buffer.actions, "rewards": buffer.rewards, "dones": buffer.dones}
    parts |= {f"before.{name}": part for name, part in buffer.observations.items()}
    parts |= {f"after.{name}": part for name, part in buffer.next_observations.items()}
    return parts
