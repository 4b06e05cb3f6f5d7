"""Callbacks of a training: schedules, guards, logs, validation, checkpoints, interruption."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dfs_rl.agents.hyperparameters import AlgorithmConfig, PolicyGradientConfig
from dfs_rl.agents.logging import METRICS, ProgressBar
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.errors import TrainingError
from dfs_rl.utils.seeding import seed_everything, stream_seed
from dfs_rl.utils.signals import StopRequest

_DIVERGED = (
    "training stopped after {} steps: the policy's weights are no longer finite; "
    "a smaller learning rate may help."
)


class SyncEpisodes(BaseCallback):
    """Excludes padding steps from an algorithm's step count, for episodes of different lengths.

    Each rollout starts new episodes. It must precede callbacks that read the count.
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


class UpdateCallback(BaseCallback):
    """Checks, logs and saves a training between two updates, and ends it on request.

    Then its state is complete: all episodes have ended and no gradients are pending. It acts before
    the first update and after the last one too, but not at the step at which a resumed run was
    saved.

    ``before_log`` and ``after_log`` receive the number of steps before and after an update is
    logged. ``save`` saves the state at the start, after ``every`` steps and at the end. A ``stop``
    is granted after the current update. ``resumed_at`` is the step at which a resumed run was
    saved.
    """

    def __init__(
        self,
        *,
        before_log: Callable[[int], None] = lambda _: None,
        after_log: Callable[[int], None] = lambda _: None,
        save: Callable[[], None] = lambda: None,
        every: int = 1,
        stop: StopRequest | None = None,
        resumed_at: int | None = None,
        bar: ProgressBar | None = None,
    ) -> None:
        super().__init__()
        self._before_log, self._after_log, self._save = before_log, after_log, save
        self._every, self._stop, self._bar = every, stop or StopRequest(), bar
        self._done_at = self._saved_at = resumed_at
        self._stop_granted = False
        self._started = 0.0

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        if self._bar is not None:
            self._bar.start(self.model.num_timesteps)

    def _on_rollout_start(self) -> None:
        self._act()

    def _on_step(self) -> bool:
        if not np.isfinite(self.locals["rewards"]).all():
            raise TrainingError(
                f"training stopped after {self.model.num_timesteps} steps: a reward is not "
                "finite, so the backbone's outputs are not."
            )
        return not self._stop_granted

    def _on_rollout_end(self) -> None:
        env = self.model.get_env()
        assert isinstance(env, SB3GatingVecEnv)
        stats = env.pop_stats()
        for name, value in stats.items():
            self.logger.record(f"rollout/{name}", value)
        if self._bar is not None:
            self._bar.update(self.model.num_timesteps, reward=f"{stats['reward']:.3f}")

    def _on_training_end(self) -> None:
        if not self._stop_granted:
            self._act()
        if self._bar is not None:
            self._bar.close()

    def _act(self) -> None:
        timesteps = self.model.num_timesteps
        if timesteps == self._done_at:
            return
        if not has_finite_weights(self.model):
            raise TrainingError(_DIVERGED.format(timesteps))
        self._before_log(timesteps)
        if self.logger.name_to_value:
            steps = timesteps - self.model._num_timesteps_at_start
            rate = steps / max(time.perf_counter() - self._started, 1e-9)
            self.logger.record("time/steps_per_second", rate, exclude=(METRICS,))
            self.logger.dump(timesteps)
        self._after_log(timesteps)
        requested = self._stop.requested  # read once: a signal may change it at any time
        last, ended = self._saved_at, timesteps >= self.model._total_timesteps
        due = last is None or timesteps // self._every > last // self._every
        if due or ended or requested:
            self._save()
            self._saved_at = timesteps
        self._stop_granted = requested
        self._done_at = timesteps


def has_finite_weights(model: BaseAlgorithm) -> bool:
    """Return whether all weights of the policy are finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())


@contextmanager
def divergence_as_error(model: BaseAlgorithm) -> Iterator[None]:
    """Raise ``TrainingError`` if an algorithm's weights are no longer finite when it samples."""
    try:
        yield
    except ValueError as error:  # torch cannot sample from weights that are not finite
        if has_finite_weights(model):
            raise
        raise TrainingError(_DIVERGED.format(model.num_timesteps)) from error
