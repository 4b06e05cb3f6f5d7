"""Gymnasium vector environment that runs all its environments as one batch."""

from collections.abc import Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium.spaces import flatten_space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from pydantic import Field

from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.envs.sampling import ALL, StreamIndices
from dfs_rl.envs.spaces import (
    METADATA,
    ObservationBatch,
    RenderMode,
    check_options,
    flatten_observations,
)
from dfs_rl.envs.task import check_types, make_task
from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import PositiveInt

# JSON has the values of the enumeration.
_Autoreset = Annotated[AutoresetMode, Field(strict=False)]
Observations = ObservationBatch | NDArray[np.float64]
StepReturn = tuple[
    Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]


class FractionalSkippingVectorEnv(VectorEnv[Observations, NDArray[np.int64], NDArray[Any]]):
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
        flat: Return observations as vectors, `[num_envs, size]`.
        render_mode: `None` or `"rgb_array"`; `render` returns one picture per environment.
        keywords: Keywords of `FractionalSkippingEnv`.

    Raises:
        ConfigError: If a value is invalid.
        DataError: If the data is missing or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    @check_types
    def __init__(
        self,
        num_envs: PositiveInt = 1,
        *,
        max_episode_steps: PositiveInt | None = None,
        autoreset_mode: _Autoreset = AutoresetMode.NEXT_STEP,
        flat: bool = False,
        render_mode: RenderMode | None = None,
        **keywords: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self._max_steps = max_episode_steps
        self.autoreset_mode = autoreset_mode
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.task = make_task(**keywords)
        self.num_envs = num_envs
        self._dict_space = self.task.observation_space
        self._flat = flat
        self.single_observation_space = (
            flatten_space(self._dict_space) if flat else self._dict_space
        )
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = BatchedEpisodes(self.task, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Start episodes on the next images.

        Args:
            seed: New seed of the random streams: environment `i` gets `seed + i`, or `seed[i]`.
            options: `{"index": ...}` shows one image of the split to all, or image `index[i]` to
                environment `i`. `{"cost_weight": ...}` likewise sets the cost weight, see
                `FractionalSkippingEnv.reset`. `{"reset_mask": mask}`, bool `[num_envs]`, resets
                only these environments, ended or not.
        """
        chosen = dict(check_options(options, "index", "cost_weight", "reset_mask"))
        seeds = self._seeds(seed)
        super().reset(seed=seed if isinstance(seed, int) else None)
        which = None
        if "reset_mask" in chosen:
            which = self._selected(chosen.pop("reset_mask"))
            seeds = [seeds[i] if i in which else None for i in range(self.num_envs)]
        self._episodes.sampler.seed(seeds)
        infos: dict[str, Any] = {}
        self._start(infos, which, **chosen)
        return self._observations(), infos

    def step(self, actions: NDArray[np.int64]) -> StepReturn:
        """Apply `actions[i]` to environment `i`: run its next layer, or take the exit."""
        episodes, rewards, infos = self._episodes, np.zeros(self.num_envs), dict[str, Any]()
        waiting = episodes.ended.copy()  # wait for a reset and ignore actions
        disabled = self.autoreset_mode is AutoresetMode.DISABLED
        if not episodes.started or (waiting.any() and disabled):
            raise gymnasium.error.ResetNeeded("some episodes are not running: call reset() first.")
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        if not waiting.all():
            if self._max_steps is not None:  # a layer is a step, and so is an exit
                truncations = ~waiting & (episodes.steps + 1 >= self._max_steps)
            rewards, result = episodes.advance(np.asarray(actions))
            if result is not None:
                self._add_final_info(infos, result.episodes, result.info)
        terminations = episodes.ended & ~waiting
        cut = np.flatnonzero(truncations & ~terminations)
        if len(cut):
            episodes.truncate(cut)
            self._add_final_info(infos, cut, {})
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        due = episodes.ended if same_step and not waiting.any() else waiting
        if due.any():
            self._start(infos, np.flatnonzero(due))
        return self._observations(), rewards, terminations, truncations, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of `FractionalSkippingEnv.action_masks`, bool `[num_envs, n]`."""
        return self._episodes.action_masks()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one picture per environment, uint8 `[360, 640, 3]`; `None` without a mode."""
        if self.render_mode is None:
            return None
        return tuple(self._episodes.render(i) for i in range(self.num_envs))

    def _observations(self) -> Observations:
        batch = self._episodes.observation
        return flatten_observations(self._dict_space, batch) if self._flat else batch

    def _start(
        self, infos: dict[str, Any], which: NDArray[np.int64] | None, **options: object
    ) -> None:
        """Start all or some episodes and write their entries into ``infos``."""
        if which is not None and len(which) == self.num_envs:
            which = None
        info = self._episodes.start(which, **options)
        self._merge_infos(infos, info, ALL if which is None else which)

    def _add_final_info(
        self, infos: dict[str, Any], which: NDArray[np.int64], last: dict[str, NDArray[Any]]
    ) -> None:
        """Write the last info of ended episodes to the place that Gymnasium defines."""
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._merge_infos(infos, last, which)
            return
        final, last_seen = np.empty(len(which), dtype=object), self._observations()
        for place, i in enumerate(which):
            if isinstance(last_seen, np.ndarray):
                final[place] = last_seen[i]
            else:
                final[place] = {key: value[i] for key, value in last_seen.items()}
        self._merge_infos(infos, {"final_obs": final}, which)
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

    def _selected(self, mask: object) -> NDArray[np.int64]:
        """Validate a mask and return the indices of its environments."""
        n = self.num_envs
        if not isinstance(mask, np.ndarray) or (mask.dtype, mask.shape) != (np.bool_, (n,)):
            raise ConfigError(
                f"options['reset_mask'] is {mask!r}; needed is an array of {n} truth values."
            )
        which = np.flatnonzero(mask)
        if len(which) == 0 or not (self._episodes.started or len(which) == n):
            raise ConfigError(
                f"options['reset_mask'] selects {len(which)} of {n} environments; needed is at "
                "least one, and all at the first reset."
            )
        return which
