"""Callbacks between two updates: schedules, guards, logs, validation, checkpoints, interruption.

Between two updates the state of a training is complete: all episodes have ended and no gradients
are pending. Callbacks act only then. A resumed run does not repeat the callbacks of the step at
which it was saved.
"""

import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dfs_rl.agents.hyperparameters import AlgorithmConfig, PolicyGradientConfig
from dfs_rl.agents.logging import METRICS
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.errors import TrainingError
from dfs_rl.utils.seeding import seed_everything, stream_seed
from dfs_rl.utils.signals import StopRequest

_DIVERGED = (
    "training stopped after {} steps: the policy's weights are no longer finite; "
    "a smaller learning rate may help."
)


@dataclass
class Lifecycle:
    """State shared by all callbacks of a training.

    Attributes:
        resumed_at: Step at which a resumed run was saved; ``None`` for a new run.
        stop: Request of the user to stop, granted after the current update.
        stop_granted: True once the state is saved and the training ends.
    """

    resumed_at: int | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    stop_granted: bool = False


class BoundaryCallback(BaseCallback):
    """Base of callbacks that act before the first update, between updates and after the last."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__()
        self.lifecycle = lifecycle
        self._done_at = lifecycle.resumed_at

    @property
    def ended(self) -> bool:
        """True after the last update."""
        return self.model.num_timesteps >= self.model._total_timesteps

    @abstractmethod
    def between_updates(self, timesteps: int) -> None:
        """Act between two updates, after ``timesteps`` steps."""

    def _on_rollout_start(self) -> None:
        self._act()

    def _on_training_end(self) -> None:
        if not self.lifecycle.stop_granted:
            self._act()

    def _on_step(self) -> bool:
        return True

    def _act(self) -> None:
        timesteps = self.model.num_timesteps
        if timesteps != self._done_at:
            self.between_updates(timesteps)
            self._done_at = timesteps


class BetweenUpdates(BoundaryCallback):
    """Calls a function with the number of steps between two updates."""

    def __init__(self, lifecycle: Lifecycle, function: Callable[[int], None]) -> None:
        super().__init__(lifecycle)
        self._function = function

    def between_updates(self, timesteps: int) -> None:
        """Call the function."""
        self._function(timesteps)


class SyncEpisodes(BaseCallback):
    """Excludes padding steps from an algorithm's step count, for episodes of different lengths.

    Stable-Baselines3 counts one step per environment. The callback also marks the first step of
    each rollout as the start of new episodes. It must precede callbacks that read the count.
    """

    model: OnPolicyAlgorithm

    def _on_rollout_start(self) -> None:
        self.model._last_episode_starts = np.ones(self.model.n_envs, dtype=np.bool_)

    def _on_step(self) -> bool:
        self.model.num_timesteps -= sum("padding" in info for info in self.locals["infos"])
        return True


class Schedules(BaseCallback):
    """Seeds each update from the run's seed and the step count, and anneals the entropy bonus."""

    def __init__(self, *, seed: int, config: AlgorithmConfig) -> None:
        super().__init__()
        self._seed = seed
        self._anneals = isinstance(config, PolicyGradientConfig)
        self._ent_coef = 0.0

    def _init_callback(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm):
            self._ent_coef = self.model.ent_coef

    def _on_rollout_start(self) -> None:
        # Actions and minibatches use the global generators, whose states are not saved.
        seed_everything(stream_seed(self._seed, "update", self.model.num_timesteps) % 2**32)
        # A resumed algorithm would otherwise update its schedules only after its first step.
        self.model._update_current_progress_remaining(
            self.model.num_timesteps, self.model._total_timesteps
        )

    def _on_rollout_end(self) -> None:
        if self._anneals:
            assert isinstance(self.model, OnPolicyAlgorithm)
            progress = self.model.num_timesteps / self.model._total_timesteps
            self.model.ent_coef = self._ent_coef * max(0.0, 1.0 - progress)
            self.logger.record("train/ent_coef", self.model.ent_coef)

    def _on_step(self) -> bool:
        return True


class FiniteGuard(BoundaryCallback):
    """Stops a training on rewards or weights that are not finite."""

    def _on_step(self) -> bool:
        if not np.isfinite(self.locals["rewards"]).all():
            raise TrainingError(
                f"training stopped after {self.model.num_timesteps} steps: a reward is not "
                "finite, so the backbone's outputs are not."
            )
        return True

    def between_updates(self, timesteps: int) -> None:
        """Check all weights of the policy."""
        if not has_finite_weights(self.model):
            raise TrainingError(_DIVERGED.format(timesteps))


def has_finite_weights(model: BaseAlgorithm) -> bool:
    """Return whether all weights of the policy are finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())


def learn(model: BaseAlgorithm, steps: int, callbacks: list[BaseCallback], *, fresh: bool) -> None:
    """Train an algorithm for another ``steps`` steps; ``fresh`` is False for a resumed run.

    Raises:
        TrainingError: If the policy's weights are no longer finite.
    """
    try:
        # UpdateLog writes after each update; the algorithm itself would write before it.
        model.learn(steps, callbacks, log_interval=sys.maxsize, reset_num_timesteps=fresh)
    except ValueError as error:  # torch cannot sample from weights that are not finite
        if has_finite_weights(model):
            raise
        raise TrainingError(_DIVERGED.format(model.num_timesteps)) from error


class UpdateLog(BoundaryCallback):
    """Logs each completed update."""

    _started = 0.0

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_rollout_end(self) -> None:
        env = self.model.get_env()
        assert isinstance(env, SB3GatingVecEnv)
        stats = env.pop_stats()
        self.logger.record("rollout/reward", stats.mean_return)
        self.logger.record("rollout/accuracy", 100.0 * stats.accuracy)
        self.logger.record("rollout/computation", stats.computation)

    def between_updates(self, timesteps: int) -> None:
        """Write the metrics of the last update."""
        if self.logger.name_to_value:
            steps = timesteps - self.model._num_timesteps_at_start
            rate = steps / max(time.perf_counter() - self._started, 1e-9)
            self.logger.record("time/steps_per_second", rate, exclude=(METRICS,))
            self.logger.dump(timesteps)


class Checkpointing(BoundaryCallback):
    """Saves the training at its start, at intervals and at its end, and ends it on request.

    Args:
        lifecycle: State shared by all callbacks of a training.
        save: Function that saves the state of the training.
        every: Steps between two checkpoints.
    """

    def __init__(self, lifecycle: Lifecycle, save: Callable[[], None], *, every: int) -> None:
        super().__init__(lifecycle)
        self._save = save
        self._every = every
        self._saved_at = lifecycle.resumed_at

    def between_updates(self, timesteps: int) -> None:
        """Save if a checkpoint is due, the training has ended or a stop is requested."""
        requested = self.lifecycle.stop.requested  # read once: a signal may change it at any time
        last = self._saved_at
        due = last is None or timesteps // self._every > last // self._every
        if due or self.ended or requested:
            self._save()
            self._saved_at = timesteps
        self.lifecycle.stop_granted = requested

    def _on_step(self) -> bool:
        return not self.lifecycle.stop_granted
