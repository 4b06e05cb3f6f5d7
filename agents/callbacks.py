"""Callbacks between two updates: schedules, guards, logs, validation, checkpoints, interruption.

Between two updates the state of a training is complete: whole episodes, no pending gradients. Each
callback acts at that moment only; a resumed run skips the moment at which it was saved.
"""

import math
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

from dfs_rl.agents.hyperparameters import AlgorithmConfig, PolicyGradientConfig, ent_coef_at
from dfs_rl.agents.logging import METRICS
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.errors import TrainingError
from dfs_rl.utils.seeding import seed_everything, stream_seed
from dfs_rl.utils.signals import StopRequest


@dataclass
class Lifecycle:
    """State that the callbacks of a training share.

    Attributes:
        resumed_at: Step at which a resumed run was saved.
        stop: The user's request to stop, granted after the current update.
        stop_granted: Whether the state was saved and the training is ending.
    """

    resumed_at: int | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    stop_granted: bool = False


class BoundaryCallback(BaseCallback):
    """A callback that acts between updates, before the first and after the last.

    Args:
        lifecycle: Shared by all callbacks of a training.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__()
        self.lifecycle = lifecycle
        self._done_at = lifecycle.resumed_at

    @property
    def algorithm(self) -> BaseAlgorithm:
        """The algorithm that learns."""
        return self.model

    @property
    def ended(self) -> bool:
        """Whether the last update was made."""
        return self.algorithm.num_timesteps >= self.algorithm._total_timesteps

    @abstractmethod
    def between_updates(self, timesteps: int) -> None:
        """Act; ``timesteps`` steps were made so far."""

    def _on_rollout_start(self) -> None:
        self._act()

    def _on_training_end(self) -> None:
        if not self.lifecycle.stop_granted:
            self._act()

    def _on_step(self) -> bool:
        return True

    def _act(self) -> None:
        timesteps = self.algorithm.num_timesteps
        if timesteps != self._done_at:
            self.between_updates(timesteps)
            self._done_at = timesteps


class SyncEpisodes(BaseCallback):
    """Makes an algorithm count decisions only, if episodes end before their rollout does.

    Stable-Baselines3 counts one step of each environment at a time. Each rollout starts with new
    episodes. Goes before callbacks that read the count.
    """

    model: OnPolicyAlgorithm

    def _on_rollout_start(self) -> None:
        self.model._last_episode_starts = np.ones(self.model.n_envs, dtype=np.bool_)

    def _on_step(self) -> bool:
        self.model.num_timesteps -= sum("padding" in info for info in self.locals["infos"])
        return True


class Schedules(BaseCallback):
    """Seeds each update by the run's seed and the steps before it; anneals the entropy bonus.

    Args:
        seed: Seed of the run.
        config: Hyperparameters of the algorithm.
    """

    def __init__(self, *, seed: int, config: AlgorithmConfig) -> None:
        super().__init__()
        self._seed = seed
        self._config = config

    def _on_rollout_start(self) -> None:
        # Actions and minibatches come from the global generators, whose state is not stored.
        seed_everything(stream_seed(self._seed, "update", self.model.num_timesteps) % 2**32)
        # A resumed algorithm would set its schedules after its first step only.
        self.model._update_current_progress_remaining(
            self.model.num_timesteps, self.model._total_timesteps
        )

    def _on_rollout_end(self) -> None:
        if not isinstance(self._config, PolicyGradientConfig):
            return
        assert isinstance(self.model, OnPolicyAlgorithm)
        progress = self.model.num_timesteps / self.model._total_timesteps
        self.model.ent_coef = ent_coef_at(self._config, progress)
        self.logger.record("train/ent_coef", self.model.ent_coef)

    def _on_step(self) -> bool:
        return True


class FiniteGuard(BoundaryCallback):
    """Stops a training whose figures are no longer finite, before anything is made of them."""

    def _on_step(self) -> bool:
        if not np.isfinite(self.locals["rewards"]).all():
            raise TrainingError(
                f"training stopped after {self.algorithm.num_timesteps} steps: a reward is not "
                "finite, so the backbone's outputs are not."
            )
        return True

    def between_updates(self, timesteps: int) -> None:
        """Look at all weights after the last update."""
        if not has_finite_weights(self.algorithm):
            raise TrainingError(_DIVERGED.format(timesteps))


_DIVERGED = (
    "training stopped after {} steps: the policy's weights are no longer finite; "
    "a smaller learning rate may help."
)


def has_finite_weights(model: BaseAlgorithm) -> bool:
    """Say whether every weight of the policy is a number."""
    return all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())


def learn(model: BaseAlgorithm, steps: int, callbacks: list[BaseCallback], *, fresh: bool) -> None:
    """Let an algorithm learn for another ``steps`` steps.

    Args:
        model: The algorithm.
        steps: How many; 0 only runs what the callbacks do at the end.
        callbacks: They see to logging, too.
        fresh: Whether to begin, and not to go on.

    Raises:
        TrainingError: If the policy's weights are no longer finite.
    """
    try:
        # UpdateLog writes after an update; the algorithm's own log would be written before it.
        model.learn(steps, callbacks, log_interval=sys.maxsize, reset_num_timesteps=fresh)
    except (
        ValueError
    ) as error:  # in the middle of an update, torch refuses to draw from such a policy
        if has_finite_weights(model):
            raise
        raise TrainingError(_DIVERGED.format(model.num_timesteps)) from error


class UpdateLog(BoundaryCallback):
    """Logs each update once it is complete; ``reward`` is the mean return of the last one.

    Args:
        lifecycle: See ``BoundaryCallback``.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__(lifecycle)
        self.reward = math.nan
        self._started = 0.0

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_rollout_end(self) -> None:
        env = self.algorithm.get_env()
        assert isinstance(env, SB3GatingVecEnv)
        stats = env.pop_stats()
        self.reward = stats.mean_return
        self.logger.record("rollout/reward", stats.mean_return)
        self.logger.record("rollout/accuracy", 100.0 * stats.accuracy)
        self.logger.record("rollout/computation", stats.computation)

    def between_updates(self, timesteps: int) -> None:
        """Write what the update logged."""
        if self.logger.name_to_value:
            steps = timesteps - self.algorithm._num_timesteps_at_start
            rate = steps / max(time.perf_counter() - self._started, 1e-9)
            self.logger.record("time/steps_per_second", rate, exclude=(METRICS,))
            self.logger.dump(timesteps)


class Checkpointing(BoundaryCallback):
    """Saves the training at its start, at intervals and at its end; ends it on request.

    Args:
        lifecycle: See ``BoundaryCallback``.
        save: Saves everything.
        every: Steps between two checkpoints.
    """

    def __init__(self, lifecycle: Lifecycle, save: Callable[[], None], *, every: int) -> None:
        super().__init__(lifecycle)
        self._save = save
        self._every = every
        self._saved_at = lifecycle.resumed_at

    def between_updates(self, timesteps: int) -> None:
        """Save if it is time."""
        requested = self.lifecycle.stop.requested  # once: it may change at any moment
        last = self._saved_at
        due = last is None or timesteps // self._every > last // self._every
        if due or self.ended or requested:
            self._save()
            self._saved_at = timesteps
        self.lifecycle.stop_granted = requested

    def _on_step(self) -> bool:
        return not self.lifecycle.stop_granted
