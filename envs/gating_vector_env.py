"""Gymnasium vector environment that runs all its environments as one batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from pydantic import SkipValidation

from dfs_rl.data import SplitName
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.gating_env import check_render_mode
from dfs_rl.envs.keywords import (
    BackboneLike,
    DatasetLike,
    DeviceLike,
    Pair,
    RewardLike,
    check_types,
)
from dfs_rl.envs.sampling import ALL, ImageSampler, StreamIndices
from dfs_rl.envs.spaces import (
    METADATA,
    ObservationBatch,
    action_space,
    check_options,
    observation_space,
    per_environment,
    replace_rows,
    sample_preferences,
)
from dfs_rl.envs.task import make_task
from dfs_rl.errors import ConfigError

StepReturn = tuple[
    ObservationBatch, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]


class FractionalSkippingVectorEnv(VectorEnv[ObservationBatch, NDArray[np.int64], NDArray[Any]]):
    """Batched version of `num_envs` `FractionalSkippingEnv`, with the results of `SyncVectorEnv`.

    Without exits all episodes have the same length, so all environments are at the same layer, end
    together and are reset together. With exits their lengths differ, and episodes that started
    together run as one batch. Action, observation, reward and info are those of
    `FractionalSkippingEnv`, batched. Memory grows linearly with `num_envs`: one activation per
    environment.

    Args:
        num_envs: Number of environments.
        max_episode_steps: Maximum length of an episode, as in Gymnasium's `TimeLimit`; `None` for
            no limit.
        autoreset_mode: Reset of ended environments: at the next step, in the same step, or only by
            `reset`.
        backbone: Backbone, as in `FractionalSkippingEnv`.
        backbone_weights: Weights of a custom network, as in `FractionalSkippingEnv`.
        trust_code: Allow the import of the constructor, `module:function`, that a folder names.
        exits: Keep the exits of the backbone, as in `FractionalSkippingEnv`.
        dataset: Data set, as in `FractionalSkippingEnv`.
        split: Split of the data set, as in `FractionalSkippingEnv`.
        reward: Reward weights, as in `FractionalSkippingEnv`.
        budget: Upper bound on computation in percent; `None` for none.
        cost_weight_range: Lowest and highest cost weight; `None` for `reward.cost` in every
            episode.
        cost_model: Registered cost model; `None` for that of the backbone.
        render_mode: `None` or `"rgb_array"`; `render` returns one picture per environment.
        device: Device of the backbone.

    Raises:
        ConfigError: If a value is invalid.
        DataError: If the data is missing or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    @check_types
    def __init__(  # noqa: PLR0913
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: SkipValidation[AutoresetMode | str] = AutoresetMode.NEXT_STEP,
        backbone: BackboneLike = None,
        backbone_weights: str | Path | None = None,
        trust_code: bool = False,
        exits: bool = True,
        dataset: DatasetLike = None,
        split: SplitName = "agent",
        reward: RewardLike = None,
        budget: float | None = None,
        cost_weight_range: Pair | None = None,
        cost_model: str | None = None,
        render_mode: str | None = None,
        device: DeviceLike = "cpu",
    ) -> None:
        super().__init__()
        check_render_mode(render_mode)
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(
                f"max_episode_steps is {max_episode_steps}; at least 1 is needed, or None for no "
                "limit."
            )
        self._max_steps = max_episode_steps
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.task = make_task(
            backbone=backbone,
            backbone_weights=backbone_weights,
            trust_code=trust_code,
            exits=exits,
            dataset=dataset,
            split=split,
            reward=reward,
            budget=budget,
            cost_weight_range=cost_weight_range,
            cost_model=cost_model,
            device=device,
        )
        self._batched_episodes = BatchedEpisodes(self.task, num_envs)
        self.num_envs = num_envs
        self.single_observation_space = observation_space(
            self.task.backbone, budget_conditioning=self.task.cost_weight_range is not None
        )
        self.single_action_space = action_space(self.task.backbone)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._sampler = ImageSampler(num_envs)
        self._last_obs: ObservationBatch = {}

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[ObservationBatch, dict[str, Any]]:
        """Start episodes on the next images.

        Args:
            seed: New seed of the random streams: environment `i` gets `seed + i`, or `seed[i]`.
            options: `{"index": ...}` shows one image of the split to all, or image `index[i]` to
                environment `i`. `{"cost_weight": ...}` likewise sets the cost weight, see
                `FractionalSkippingEnv.reset`. `{"reset_mask": mask}`, bool `[num_envs]`, resets
                only these environments, ended or not.
        """
        chosen, seeds = (
            check_options(options, "index", "cost_weight", "reset_mask"),
            self._seeds(seed),
        )
        super().reset(seed=seed if isinstance(seed, int) else None)
        which = None
        if "reset_mask" in chosen:
            which = self._chosen(chosen["reset_mask"])
            seeds = [seeds[i] if i in which else None for i in range(self.num_envs)]
        self._sampler.seed(seeds)
        infos: dict[str, Any] = {}
        self._reset_envs(infos, which, chosen.get("index"), chosen.get("cost_weight"))
        return self._last_obs, infos

    def step(self, actions: NDArray[np.int64]) -> StepReturn:
        """Apply `actions[i]` to environment `i`: run its next layer, or take the exit."""
        waiting = self._batched_episodes.ended.copy()  # wait for a reset and ignore actions
        if not self._batched_episodes.started or (
            waiting.any() and self.autoreset_mode is AutoresetMode.DISABLED
        ):
            raise gymnasium.error.ResetNeeded(
                "episodes are over or none was begun: call reset() first."
            )
        rewards, infos = np.zeros(self.num_envs), dict[str, Any]()
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        if not waiting.all():
            if self._max_steps is not None:  # a layer is a step, and so is an exit
                truncations = ~waiting & (self._batched_episodes.layers + 1 >= self._max_steps)
            transition = self._batched_episodes.advance(np.asarray(actions))
            self._last_obs, rewards = transition.observation, transition.reward
            if transition.result is not None:
                self._add_final_info(infos, transition.result.episodes, transition.result.info())
        terminations = self._batched_episodes.ended & ~waiting
        cut = np.flatnonzero(truncations & ~terminations)
        if len(cut):
            self._batched_episodes.truncate(cut)
            self._add_final_info(infos, cut, {})
        if waiting.any():
            self._reset_envs(infos, np.flatnonzero(waiting))
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and self._batched_episodes.ended.any():
            self._reset_envs(infos, np.flatnonzero(self._batched_episodes.ended))
        return (
            self._last_obs,
            rewards,
            terminations,
            truncations,
            infos,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the actions that keep the cheapest way to an answer within the budget.

        Returns:
            bool `[num_envs, n]`; the exit action is allowed only at an exit.
        """
        return self._batched_episodes.action_masks()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one picture per environment.

        Returns:
            Pictures, uint8 `[360, 640, 3]`, or `None` without a render mode.
        """
        if self.render_mode is None:
            return None
        from dfs_rl.envs.rendering import render_episode

        return tuple(render_episode(self._batched_episodes, i) for i in range(self.num_envs))

    def _reset_envs(
        self,
        infos: dict[str, Any],
        which: NDArray[np.int64] | None,
        wanted: object = None,
        cost_weight: object = None,
    ) -> None:
        """Start all or some episodes and write their entries into ``infos``."""
        whole = which is None or len(which) == self.num_envs
        streams = ALL if whole or which is None else which
        if wanted is None:
            indices = self._sampler.draw(len(self.task.images), streams)
        else:
            indices = per_environment("index", wanted, self.num_envs, np.int64)[streams]
        preferences = sample_preferences(self.task, self._sampler, cost_weight, which=streams)
        started = self._batched_episodes.reset(indices, preferences, which=None if whole else which)
        if whole:
            self._last_obs = started
        else:
            self._last_obs = replace_rows(self._last_obs, started, streams)
        reset_info: dict[str, Any] = {"index": indices}
        if self._batched_episodes.cost_weight is not None:
            reset_info["cost_weight"] = self._batched_episodes.cost_weight[streams]
        self._merge_infos(infos, reset_info, streams)

    def _add_final_info(
        self, infos: dict[str, Any], which: NDArray[np.int64], last: dict[str, NDArray[Any]]
    ) -> None:
        """Write the last info of ended episodes to the place that Gymnasium defines."""
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._merge_infos(infos, last, which)
            return
        separate = np.empty(len(which), dtype=object)
        for place, i in enumerate(which):
            separate[place] = {key: value[i] for key, value in self._last_obs.items()}
        self._merge_infos(infos, {"final_obs": separate}, which)
        self._merge_infos(infos.setdefault("final_info", {}), last, which)
        infos.setdefault("_final_info", np.zeros(self.num_envs, dtype=np.bool_))[which] = True

    def _merge_infos(
        self, infos: dict[str, Any], values: dict[str, Any], which: StreamIndices
    ) -> None:
        """Merge values of some environments into ``infos`` in Gymnasium's format.

        Other environments get zeros, and each key gets a mask.
        """
        for key, value in values.items():
            if key not in infos:
                infos[key] = np.zeros((self.num_envs, *value.shape[1:]), dtype=value.dtype)
                infos[f"_{key}"] = np.zeros(self.num_envs, dtype=np.bool_)
                if value.dtype == object:
                    infos[key].fill(None)
            infos[key][which] = value
            infos[f"_{key}"][which] = True

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if not isinstance(seed, Sequence | np.ndarray) or len(seed) != self.num_envs:
            raise ConfigError(
                f"seed is {seed!r}; needed is one number, or one for each of {self.num_envs} "
                "environments."
            )
        return [int(each) if isinstance(each, np.integer) else each for each in seed]

    def _chosen(self, mask: object) -> NDArray[np.int64]:
        """Validate a mask and return the indices of its environments."""
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not fits or cast("NDArray[np.bool_]", mask).shape != (self.num_envs,):
            raise ConfigError(
                f"options['reset_mask'] is {mask!r}; needed is an array of {self.num_envs} truth "
                "values."
            )
        which = np.flatnonzero(cast("NDArray[np.bool_]", mask))
        if len(which) == 0 or not (self._batched_episodes.started or len(which) == self.num_envs):
            raise ConfigError(
                f"options['reset_mask'] selects {len(which)} of {self.num_envs} environments; "
                "needed is one at least, and at first all."
            )
        return which


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ConfigError(
            f"autoreset_mode is {mode!r}; allowed are {[m.value for m in AutoresetMode]}."
        ) from None
