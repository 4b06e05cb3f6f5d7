"""Stable-Baselines3 vector environment on batched episodes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import SkipValidation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.spaces import EpisodeResult, ObservationBatch, RenderMode, check_options
from dfs_rl.envs.task import Task, check_types
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.utils.config import NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """State of the random streams, see ``ImageSampler.get_state``."""

    keys: list[NonNegativeInt]
    episodes: list[NonNegativeInt]
    given: list[NonNegativeInt]


@dataclass(frozen=True, kw_only=True)
class EnvState:
    """State of the groups' random streams, and of each environment's episode."""

    streams: StreamState
    indices: list[NonNegativeInt]
    actions: list[list[NonNegativeInt]]
    steps: NonNegativeInt
    returns: list[float]
    preferences: list[float] | None


class SB3GatingVecEnv(VecEnv):
    """Vector environment of Stable-Baselines3: automatic reset, one ``info`` per environment.

    Steps are the same as those of ``DummyVecEnv`` over ``n_envs`` ``FractionalSkippingEnv``, in one
    batch::

        env = SB3GatingVecEnv(make_task(reward={"cost": 5.0}), 256, seed=0)
        PPO("MultiInputPolicy", env).learn(100_000)

    ``group_size`` consecutive environments share image and cost weight, so that their returns
    differ only by the options: environment ``i`` belongs to group ``i // group_size``, and group
    ``j`` draws images and cost weights like a single environment with seed ``seed + j``. The last
    step's ``info`` contains the entries of the single environment, ``terminal_observation``,
    ``TimeLimit.truncated``, and ``episode`` with return and length, so no ``VecMonitor`` is needed.

    On a network with exits, episodes differ in length. By default each environment starts its next
    episode immediately, and the images within a group diverge. With ``sync_episodes`` all
    environments start together after as many steps as there are layers, and an episode that took an
    exit is padded until then. In padding steps actions have no effect, rewards and observations are
    zero, except for the layer, ``done`` is false, and ``info`` is ``{"padding": True}``. No
    decision takes place in them: a learner must exclude these steps from training, as
    ``dfs_rl.agents.buffers`` does, and from its step count, as
    ``dfs_rl.agents.callbacks.SyncEpisodes`` does.

    Args:
        task: Backbone, images, reward weights and budget.
        n_envs: Number of environments, a multiple of ``group_size``.
        group_size: Number of environments that share an image.
        sync_episodes: Start all episodes together; required for groups on a network with exits.
        seed: Seed of the random streams of images; ``None`` for system entropy.
        render_mode: ``None`` or ``"rgb_array"``.

    Raises:
        ConfigError: If a value is invalid.
    """

    @check_types
    def __init__(
        self,
        task: SkipValidation[Task],
        n_envs: int,
        *,
        group_size: int = 1,
        sync_episodes: bool = False,
        seed: int | None = None,
        render_mode: RenderMode | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise ConfigError(f"task is {task!r}; needed is a result of dfs_rl.envs.make_task.")
        if group_size < 1 or n_envs < 1 or n_envs % group_size:
            raise ConfigError(
                f"{n_envs} environments cannot be split into groups of group_size = {group_size}; "
                "it must divide them."
            )
        if task.passes.limit > 1 and (group_size > 1 or sync_episodes):
            raise ConfigError(
                f"group_size is {group_size} and sync_episodes is {sync_episodes}, but episodes of "
                f"{task.passes.limit} passes end at different times; pass 1 and False."
            )
        if group_size > 1 and task.backbone.costs.exits and not sync_episodes:
            raise ConfigError(
                f"group_size is {group_size} on a network with exits, whose episodes end at "
                "different times; pass sync_episodes=True, or a backbone without exits."
            )
        self.task = task
        self.group_size = group_size
        self.sync_episodes = sync_episodes
        self.render_mode = render_mode
        self._episodes = BatchedEpisodes(task, n_envs, group_size=group_size)
        self._returns: NDArray[np.float64] = np.zeros(n_envs)
        self._actions: NDArray[np.int64] = np.zeros(n_envs, dtype=np.int64)
        self._steps = 0
        self._clear_stats()
        super().__init__(n_envs, task.observation_space, task.action_space)
        if seed is not None:
            self.seed(seed)

    def reset(self) -> VecEnvObs:
        """Reset all environments; uses pending seeds and ``{"index": i}`` options once."""
        indices = [check_options(options, "index").get("index") for options in self._options]
        sampler = self._episodes.sampler
        sampler.seed(self._seeds[: len(sampler.keys)])
        given = any(index is not None for index in indices)
        size = self.group_size
        groups = [indices[i : i + size] for i in range(0, self.num_envs, size)]
        if size > 1 and any(group != group[:1] * size for group in groups):
            raise ConfigError(
                f"options['index'] is {indices}, but group_size is {size}, and the environments of "
                "a group have one image."
            )
        info = self._start(index=indices if given else None)
        rows = zip(*info.values(), strict=True)
        self.reset_infos = [dict(zip(info, row, strict=True)) for row in rows]
        self._reset_seeds()
        self._reset_options()
        return self._episodes.observation

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Store the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Apply the actions and reset ended environments."""
        episodes, padding = self._episodes, self._episodes.ended.copy()
        episodes.require_reset()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if padding.all():
            rewards, result = np.zeros(self.num_envs), None
            zeros = {key: np.zeros_like(value) for key, value in episodes.observation.items()}
            episodes.observation = zeros
        else:
            rewards, result = episodes.advance(self._actions)
        self._returns += rewards
        self._steps += 1
        if result is not None:
            self._fill_infos(infos, result)
            self._add_stats(result)
        for i in np.flatnonzero(padding):
            infos[i]["padding"] = True
        dones = episodes.ended & ~padding
        if self.sync_episodes and self._steps < self.task.backbone.costs.n_layers:
            self._set_padded_layers()
        elif episodes.ended.any():  # all of them, or groups have size 1
            self._start(None if episodes.ended.all() else np.flatnonzero(episodes.ended))
        return episodes.observation, rewards.astype(np.float32), dones, infos

    @property
    def episodes(self) -> int:
        """Number of episodes that ended since the random streams were seeded."""
        started = int(self._episodes.sampler.episodes.sum()) * self.group_size
        return started - self.num_envs

    def pop_stats(self) -> dict[str, float]:
        """Return means over the episodes that ended since the last call, zeros without any.

        They are the undiscounted return, ``reward``, and in percent ``accuracy`` and
        ``computation``, never-gated parts included, without the gate.
        """
        correct, computation, returns = (self._sums / max(self._n_ended, 1)).tolist()
        self._clear_stats()
        return {"reward": returns, "accuracy": 100.0 * correct, "computation": computation}

    def set_backbone(self, backbone: GatedBackbone) -> ObservationBatch:
        """Replace the backbone, replay all episodes and return their current observations."""
        episodes = self._episodes
        episodes.require_reset()
        actions = episodes.actions
        self.task = episodes.task = replace(self.task, backbone=backbone)
        episodes.replay(episodes.indices, actions, episodes.preferences)
        return self._set_padded_layers()

    def get_state(self) -> dict[str, Any]:
        """Return the state as JSON values, see ``EnvState``, without that of ``pop_stats``."""
        episodes = self._episodes
        episodes.require_reset()
        preferences = episodes.preferences
        return {
            "streams": episodes.sampler.get_state(),
            "indices": episodes.indices.tolist(),
            "actions": episodes.actions,
            "steps": self._steps,
            "returns": self._returns.tolist(),
            "preferences": None if preferences is None else preferences.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> ObservationBatch:
        """Restore a state by a replay of its episodes, and return the current observations.

        Raises:
            CheckpointError: If the numbers of environments, groups or images do not match.
        """
        episodes, n_images = self._episodes, len(self.task.images)
        n_groups, highest = len(episodes.sampler.keys), max(state["indices"])
        stored, stored_groups = len(state["indices"]), len(state["streams"]["keys"])
        if (stored, stored_groups) != (self.num_envs, n_groups):
            raise CheckpointError(
                f"the checkpoint has {stored} environments in {stored_groups} groups; needed are "
                f"{self.num_envs} in {n_groups} groups."
            )
        if highest >= n_images:
            raise CheckpointError(
                f"the checkpoint shows image {highest}, but there are {n_images} images."
            )
        episodes.sampler.set_state(state["streams"])
        self._returns = np.array(state["returns"], dtype=np.float64)
        self._steps = state["steps"]
        preferences = None
        if self.task.cost_weight_range is not None:
            preferences = np.array(state["preferences"], dtype=np.float64)
        episodes.replay(np.array(state["indices"], dtype=np.int64), state["actions"], preferences)
        return self._set_padded_layers()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of ``FractionalSkippingEnv.action_masks``, bool ``[n_envs, n]``."""
        return self._episodes.action_masks()

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        if self.render_mode is None:
            return [None] * self.num_envs
        return [self._episodes.render(i) for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object, once per environment."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Raise ``ConfigError``: the environments share all attributes."""
        raise ConfigError(
            f"attribute {attr_name!r} cannot be set to {value!r} for environments {indices}: they "
            "run as one batch."
        )

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[Any]:
        """Call ``action_masks``, the only supported method, and return each environment's mask."""
        if method_name != "action_masks" or method_args or method_kwargs:
            raise AttributeError(
                f"the environments have no method {method_name!r}; allowed is 'action_masks', "
                "without arguments."
            )
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """Return true only for ``Monitor``, whose entries ``info`` has; none is wrapped."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _start(
        self, which: NDArray[np.int64] | None = None, *, index: object = None
    ) -> dict[str, NDArray[Any]]:
        """Start all or some episodes and return their entries of ``info``, batched."""
        if which is None:
            self._steps = 0
        self._returns[slice(None) if which is None else which] = 0.0
        return self._episodes.start(which, index=index)

    def _set_padded_layers(self) -> ObservationBatch:
        """Show the current layer to episodes that took an exit, and return the observation."""
        self._episodes.observation["layer"][self._episodes.ended] = self._steps
        return self._episodes.observation

    def _fill_infos(self, infos: list[dict[str, Any]], result: EpisodeResult) -> None:
        observation = self._episodes.observation
        returns = self._returns[result.episodes].tolist()
        for i, values, total in zip(result.episodes.tolist(), result.infos(), returns, strict=True):
            info = infos[i]
            info.update(values)
            info["TimeLimit.truncated"] = False
            info["terminal_observation"] = {key: value[i] for key, value in observation.items()}
            info["episode"] = {"r": total, "l": int(self._episodes.steps[i])}

    def _clear_stats(self) -> None:
        self._n_ended = 0
        self._sums: NDArray[np.float64] = np.zeros(3)  # correct, computation, returns

    def _add_stats(self, result: EpisodeResult) -> None:
        self._n_ended += len(result.episodes)
        values = result.info["correct"], result.info["computation"], self._returns[result.episodes]
        self._sums += [float(each.sum()) for each in values]
