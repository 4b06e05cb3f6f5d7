"""Stable-Baselines3 vector environment on batched episodes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import SkipValidation
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.gating_env import check_render_mode
from dfs_rl.envs.keywords import check_types
from dfs_rl.envs.sampling import ImageSampler
from dfs_rl.envs.spaces import (
    EpisodeResult,
    ObservationBatch,
    action_space,
    check_options,
    observation_space,
    per_environment,
    replace_rows,
    sample_preferences,
)
from dfs_rl.envs.task import Task
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.utils.config import NonNegativeInt


class EpisodeStats(NamedTuple):
    """Means over the episodes that ended since the last call of ``pop_stats``.

    Attributes:
        episodes: Number of episodes; all other fields are zero if there are none.
        mean_return: Undiscounted return.
        accuracy: Share of correct predictions.
        computation: Percent, never-gated parts included, without the gate.
        option_shares: Share of each action at each layer, layers after an exit counted under the
            exit action, float64 ``[layers, actions]``.
    """

    episodes: int
    mean_return: float
    accuracy: float
    computation: float
    option_shares: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """State of the random streams, see ``ImageSampler.get_state``."""

    keys: list[NonNegativeInt]
    episodes: list[NonNegativeInt]


@dataclass(frozen=True, kw_only=True)
class EnvState:
    """State of the environments, see ``SB3GatingVecEnv.get_state``.

    Attributes:
        streams: State of the groups' random streams.
        indices: Image of each environment.
        options: Options so far, of each environment.
        returns: Return so far, of each environment.
        preferences: Preference of each environment; ``None`` without budget conditioning.
    """

    streams: StreamState
    indices: list[NonNegativeInt]
    options: list[list[NonNegativeInt]]
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

    With exits, episodes differ in length. By default each environment starts its next episode
    immediately, and the images within a group diverge. With ``sync_episodes`` no environment is
    reset before all layers have passed: an episode that took an exit is padded until then. So an
    update of ``n_steps`` equal to the number of layers contains one whole episode of each
    environment, and the episodes of a group start together at the same image. In padding steps
    actions have no effect, rewards are zero, observations are zero except for the layer, ``done``
    is false, because nothing ends, and ``info`` is ``{"padding": True}``. No decision takes place
    in them: a learner must exclude these steps from training, as ``dfs_rl.agents.buffers`` does,
    and from its step count, as ``dfs_rl.agents.callbacks.SyncEpisodes`` does.

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
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        if not isinstance(task, Task):
            raise ConfigError(f"task is {task!r}; needed is what dfs_rl.envs.make_task returns.")
        if group_size < 1 or n_envs < 1 or n_envs % group_size:
            raise ConfigError(
                f"{n_envs} environments cannot be split into groups of group_size = {group_size}; "
                "it must divide them."
            )
        if group_size > 1 and task.backbone.costs.exits and not sync_episodes:
            raise ConfigError(
                f"group_size is {group_size} on a network with exits, whose walks end at different "
                "times; pass "
                "sync_episodes=True, or a backbone without exits."
            )
        self.task = task
        self.group_size = group_size
        self.sync_episodes = sync_episodes
        self.render_mode = render_mode
        self._batched_episodes = BatchedEpisodes(task, n_envs)
        self._sampler = ImageSampler(n_envs // group_size)
        self._returns: NDArray[np.float64] = np.zeros(n_envs)
        self._actions: NDArray[np.int64] = np.zeros(n_envs, dtype=np.int64)
        self._steps = 0
        self._last_obs: ObservationBatch = {}
        self._clear_stats()
        observations = observation_space(
            task.backbone, budget_conditioning=task.cost_weight_range is not None
        )
        super().__init__(n_envs, observations, action_space(task.backbone))
        if seed is not None:
            self.seed(seed)

    def reset(self) -> VecEnvObs:
        """Reset all environments; uses pending seeds and ``{"index": i}`` options once."""
        wanted = [check_options(options, "index").get("index") for options in self._options]
        indices = None
        if any(index is not None for index in wanted):
            indices = per_environment("index", wanted, self.num_envs, np.int64)
        self._sampler.seed(self._seeds[: len(self._sampler.keys)])
        observation = self._reset_all(indices)
        self.reset_infos = [{"index": index} for index in self._batched_episodes.indices]
        if self._batched_episodes.cost_weight is not None:
            for info, cost_weight in zip(
                self.reset_infos, self._batched_episodes.cost_weight, strict=True
            ):
                info["cost_weight"] = cost_weight
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Store the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Apply the actions and reset ended environments.

        With ``sync_episodes`` all environments are reset together after the last layer.
        """
        episodes, padding = self._batched_episodes, self._batched_episodes.ended.copy()
        episodes.require_reset()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if padding.all():
            observation = {key: np.zeros_like(value) for key, value in self._last_obs.items()}
            rewards = np.zeros(self.num_envs)
        else:
            observation, rewards, result = episodes.advance(self._actions)
            self._returns += rewards
            if result is not None:
                self._fill_infos(infos, result, observation)
                self._add_stats(result)
        self._steps += 1
        for i in np.flatnonzero(padding):
            infos[i]["padding"] = True
        dones = episodes.ended & ~padding
        self._last_obs = observation
        if episodes.ended.any():
            self._reset_ended(episodes.ended.copy())
        return self._last_obs, rewards.astype(np.float32), dones, infos

    @property
    def episodes(self) -> int:
        """Number of episodes that ended since the random streams were seeded."""
        started = int(self._sampler.episodes.sum()) * self.group_size
        return started - self.num_envs

    def pop_stats(self) -> EpisodeStats:
        """Return the means over the episodes since the last call, and clear them."""
        n = max(self._episodes, 1)
        stats = EpisodeStats(
            episodes=self._episodes,
            mean_return=self._sum_returns / n,
            accuracy=self._sum_correct / n,
            computation=self._sum_computation / n,
            option_shares=self._option_counts / n,
        )
        self._clear_stats()
        return stats

    def set_backbone(self, backbone: WalkableBackbone) -> ObservationBatch:
        """Replace the backbone and replay every episode up to its current layer.

        Args:
            backbone: Backbone with changed weights.

        Returns:
            The new current observations.
        """
        episodes = self._batched_episodes
        episodes.require_reset()
        self.task = replace(self.task, backbone=backbone)
        indices, preferences = episodes.indices, episodes.preferences
        options = self._options_so_far()
        episodes.set_task(self.task)
        return self._replayed(episodes.replay(indices, options, preferences))

    def get_state(self) -> dict[str, Any]:
        """Return the state of random streams and episodes as JSON values.

        The statistics of ``pop_stats`` are not included.
        """
        self._batched_episodes.require_reset()
        return {
            "streams": self._sampler.get_state(),
            "indices": self._batched_episodes.indices.tolist(),
            "options": self._options_so_far().tolist(),
            "returns": self._returns.tolist(),
            "preferences": None
            if self._batched_episodes.preferences is None
            else self._batched_episodes.preferences.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> ObservationBatch:
        """Restore a state that ``get_state`` returned, by a replay of the episodes.

        Returns:
            The current observations of the restored state.

        Raises:
            CheckpointError: If the numbers of environments, groups or images do not match.
        """
        n_groups = len(self._sampler.keys)
        if len(state["indices"]) != self.num_envs or len(state["streams"]["keys"]) != n_groups:
            raise CheckpointError(
                f"the stored environments are {len(state['indices'])} in "
                f"{len(state['streams']['keys'])} groups, but "
                f"{self.num_envs} in {n_groups} are set up."
            )
        if max(state["indices"]) >= len(self.task.images):
            raise CheckpointError(
                f"the stored environments are at image {max(state['indices'])}, but there are "
                f"{len(self.task.images)}."
            )
        self._sampler.set_state(state["streams"])
        self._returns = np.array(state["returns"], dtype=np.float64)
        options = np.array(state["options"], dtype=np.int64).reshape(self.num_envs, -1)
        preferences = (
            None
            if self.task.cost_weight_range is None
            else np.array(state["preferences"], dtype=float)
        )
        self._steps = options.shape[1]
        indices = np.array(state["indices"], dtype=np.int64)
        return self._replayed(self._batched_episodes.replay(indices, options, preferences))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the actions that keep the cheapest way to an answer within the budget.

        Returns:
            bool ``[n_envs, n]``; the exit action is allowed only at an exit.
        """
        return self._batched_episodes.action_masks()

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        if self.render_mode is None:
            return [None] * self.num_envs
        from dfs_rl.envs.rendering import render_episode

        return [render_episode(self._batched_episodes, i) for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object, once per environment."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Raise an error: the environments share all attributes.

        Raises:
            ConfigError: Always.
        """
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
        """Call ``action_masks``, the only supported method, and return each environment's mask.

        Raises:
            AttributeError: If another method or an argument is given.
        """
        if method_name != "action_masks" or method_args or method_kwargs:
            raise AttributeError(
                f"the environments have no method {method_name!r}; allowed is 'action_masks', "
                "without arguments."
            )
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],  # noqa: ARG002
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """Return false for every environment: none is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _reset_all(self, indices: NDArray[np.int64] | None) -> ObservationBatch:
        if indices is None:
            indices = np.repeat(self._sampler.draw(len(self.task.images)), self.group_size)
        self._returns = np.zeros(self.num_envs)
        self._steps = 0
        preferences = sample_preferences(self.task, self._sampler, None, repeats=self.group_size)
        self._last_obs = self._batched_episodes.reset(indices, preferences)
        return self._last_obs

    def _reset_ended(self, ended: NDArray[np.bool_]) -> None:
        """Reset the environments that are due and update ``_last_obs``."""
        if self.sync_episodes and self._steps < self.task.backbone.costs.n_layers:
            self._last_obs["layer"][ended] = self._steps
        elif ended.all():
            self._reset_all(None)
        else:
            which = np.flatnonzero(ended)  # groups have size 1 here
            self._returns[which] = 0.0
            indices = self._sampler.draw(len(self.task.images), which)
            preferences = sample_preferences(self.task, self._sampler, None, which=which)
            started = self._batched_episodes.reset(indices, preferences, which=which)
            self._last_obs = replace_rows(self._last_obs, started, which)

    def _options_so_far(self) -> NDArray[np.int64]:
        """Return the options since the common start, int64 ``[n_envs, steps]``.

        Raises:
            ConfigError: If the episodes do not start together.
        """
        if self.task.backbone.costs.exits and not self.sync_episodes:
            raise ConfigError(
                "on a network with exits, environments can be stored or take up weights only with "
                "sync_episodes=True."
            )
        return self._batched_episodes.options[:, : self._steps]

    def _replayed(self, observation: ObservationBatch) -> ObservationBatch:
        """Store the observation after a replay, with the layer of padded environments."""
        self._last_obs = observation
        self._last_obs["layer"][self._batched_episodes.ended] = self._steps
        return self._last_obs

    def _fill_infos(
        self, infos: list[dict[str, Any]], result: EpisodeResult, observation: ObservationBatch
    ) -> None:
        # As in the single environment: Python booleans and NumPy numbers.
        named = {
            key: value.tolist() if value.dtype == np.bool_ else list(value)
            for key, value in result.info().items()
        }
        keys = list(named)
        n_layers = self.task.backbone.costs.n_layers
        features, layers, contexts = (
            observation["features"],
            observation["layer"],
            observation["context"],
        )
        returns = self._returns[result.episodes].tolist()
        for i, values, total in zip(
            result.episodes.tolist(), zip(*named.values(), strict=True), returns, strict=True
        ):
            info = infos[i]
            info.update(zip(keys, values, strict=True))
            info["TimeLimit.truncated"] = False
            info["terminal_observation"] = {
                "features": features[i],
                "layer": layers[i],
                "context": contexts[i],
            }
            length = min(
                info.get("n_layers_run", n_layers) + 1, n_layers
            )  # an exit is a step as well
            info["episode"] = {"r": total, "l": length}

    def _clear_stats(self) -> None:
        costs = self.task.backbone.costs
        self._episodes = 0
        self._sum_returns = self._sum_correct = self._sum_computation = 0.0
        self._option_counts: NDArray[np.float64] = np.zeros((costs.n_layers, costs.n_actions))

    def _add_stats(self, result: EpisodeResult) -> None:
        self._episodes += len(result.episodes)
        self._sum_returns += float(self._returns[result.episodes].sum())
        self._sum_correct += float(result.correct.sum())
        self._sum_computation += float(result.computation.sum())
        options = self._batched_episodes.options[result.episodes]  # [n, layers]
        n_options = self._option_counts.shape[1]
        for layer in range(options.shape[1]):
            self._option_counts[layer] += np.bincount(options[:, layer], minlength=n_options)
