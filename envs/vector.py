"""Gymnasium's vector environment: one batch of walks instead of n environments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data import Dataset, ImageSet, SplitName
from dfs_rl.errors import ConfigError
from dfs_rl.gating.reward import RewardWeights
from envs.core import (
    METADATA,
    Batch,
    Outcome,
    Walks,
    action_space,
    choose_positions,
    observation_space,
)
from envs.single import check_render_mode
from envs.streams import ImageStreams
from envs.task import make_task

StepReturn = tuple[Batch, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class FractionalSkippingVectorEnv(VectorEnv[Batch, NDArray[np.int64], NDArray[Any]]):
    """`num_envs` copies of `FractionalSkippingEnv` that run as one batch and return what `SyncVectorEnv` would.

    All walks have the same length, so all environments are always at the same layer, end together and are reset together.
    Action, observation, reward and info are those of `FractionalSkippingEnv`, batched. Memory grows linearly with `num_envs`:
    the activations of that many images.

    Args:
        num_envs: Number of environments.
        autoreset_mode: When environments that ended begin anew: at the next step, in the same step, or by `reset` alone.
        backbone: As in `FractionalSkippingEnv`, like everything below.
        dataset: See there.
        split: See there.
        weights: See there.
        budget: See there.
        cost_weights: See there.
        render_mode: See there; `render` returns one picture per environment.
        device: See there.

    Raises:
        ConfigError: If a value is not allowed.
        DataError: If the data cannot be found or does not fit the backbone.
        CheckpointError: If the backbone cannot be read.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        backbone: str | Path | WalkableBackbone | None = None,
        dataset: str | Dataset | ImageSet | None = None,
        split: SplitName = "agent",
        weights: RewardWeights | None = None,
        budget: float | None = None,
        cost_weights: tuple[float, float] | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        check_render_mode(render_mode)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.task = make_task(
            backbone=backbone,
            dataset=dataset,
            split=split,
            weights=weights,
            budget=budget,
            cost_weights=cost_weights,
            device=device,
        )
        self.num_envs = num_envs
        self.single_observation_space = observation_space(
            self.task.backbone, dial=self.task.prices is not None
        )
        self.single_action_space = action_space(self.task.backbone)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._walks = Walks(self.task, num_envs)
        self._streams = ImageStreams(num_envs)
        self._running = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Batch, dict[str, Any]]:
        """Show the next images.

        Args:
            seed: Environment `i` starts its stream of images anew from `seed + i`, or from `seed[i]`.
            options: `{"index": ...}` shows one image of the split to all, or image `index[i]` to environment `i`.
                `{"cost_weight": ...}` likewise sets what computation costs, see there.
                `{"reset_mask": ...}` is accepted where it selects all environments: they end together, too.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        options = options or {}
        if "reset_mask" in options:
            self._check_mask(options["reset_mask"])
        self._streams.seed(self._seeds(seed))
        return self._begin(options.get("index"), options.get("cost_weight"))

    def step(self, actions: NDArray[np.int64]) -> StepReturn:
        """Run the next layer, environment `i` at option `actions[i]`."""
        if not self._running:
            return self._step_after_end()
        transition = self._walks.advance(np.asarray(actions))
        observation, infos = transition.observation, {}
        ended = transition.outcome is not None
        if transition.outcome is not None:
            self._running = False
            infos = self._batched(transition.outcome.info())
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = {"final_obs": self._separate(observation), "final_info": infos}
                observation, infos = self._begin()
                infos |= self._batched(final)
        terminations = np.full(self.num_envs, ended)
        return (
            observation,
            transition.reward,
            terminations,
            np.zeros(self.num_envs, dtype=np.bool_),
            infos,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions keep the cheapest completion within the budget, bool `[num_envs, n]`."""
        return self._walks.action_masks()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one picture per environment, uint8 `[360, 640, 3]`, or `None` without a render mode."""
        if self.render_mode is None:
            return None
        from envs.rendering import draw_walk

        return tuple(draw_walk(self._walks, i) for i in range(self.num_envs))

    @property
    def outcome(self) -> Outcome | None:
        """What came of the walks if they have just ended."""
        return self._walks.outcome

    def _begin(
        self, wanted: object = None, cost_weight: object = None
    ) -> tuple[Batch, dict[str, Any]]:
        if wanted is None:
            indices = self._streams.draw(len(self.task.images))
        else:
            indices = np.array(
                np.broadcast_to(np.asarray(wanted, dtype=np.int64), (self.num_envs,))
            )
        positions = choose_positions(self.task, self._streams, cost_weight)
        observation = self._walks.begin(indices, positions)
        self._running = True
        begun: dict[str, Any] = {"index": indices}
        if self._walks.prices is not None:
            begun["cost_weight"] = self._walks.prices
        return observation, self._batched(begun)

    def _step_after_end(self) -> StepReturn:
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP or self._walks.outcome is None:
            raise gymnasium.error.ResetNeeded(
                "the episodes are over or none was begun: call reset() first."
            )
        observation, infos = self._begin()
        no = np.zeros(self.num_envs, dtype=np.bool_)
        return observation, np.zeros(self.num_envs), no, no.copy(), infos

    def _batched(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return values with the masks of Gymnasium's vector infos: every environment has each of them."""
        masks = {f"_{key}": np.ones(self.num_envs, dtype=np.bool_) for key in values}
        return values | masks

    def _separate(self, observation: Batch) -> NDArray[np.object_]:
        """Return one observation per environment, as `final_obs` holds them."""
        separate = np.empty(self.num_envs, dtype=object)
        for i in range(self.num_envs):
            separate[i] = {key: value[i] for key, value in observation.items()}
        return separate

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return [seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(
                f"seed has {len(seed)} entries; needed is one number, or one for each of {self.num_envs} environments."
            )
        return list(seed)

    def _check_mask(self, mask: object) -> None:
        fits = (
            isinstance(mask, np.ndarray)
            and mask.dtype == np.bool_
            and mask.shape == (self.num_envs,)
        )
        if not (fits and cast("NDArray[np.bool_]", mask).all()):
            raise ConfigError(
                f"options['reset_mask'] is {mask!r}; all {self.num_envs} environments are at the same layer and end together, so "
                "only an array of that many True values is allowed."
            )


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ConfigError(
            f"autoreset_mode is {mode!r}; allowed are {[m.value for m in AutoresetMode]}."
        ) from None
