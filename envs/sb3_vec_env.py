"""Stable-Baselines3's vector environment over the same batch of walks."""

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
from dfs_rl.envs.batched_episodes import Walks
from dfs_rl.envs.gating_env import check_render_mode
from dfs_rl.envs.keywords import check_types
from dfs_rl.envs.sampling import ImageStreams
from dfs_rl.envs.spaces import (
    Batch,
    Outcome,
    action_space,
    check_options,
    choose_positions,
    observation_space,
    per_environment,
    replaced,
)
from dfs_rl.envs.task import Task
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.utils.config import CountOrZero


class EpisodeStats(NamedTuple):
    """Means over the episodes that ended since the last call of ``pop_stats``.

    Attributes:
        episodes: How many there were; all other fields are zero if none.
        mean_return: Undiscounted return.
        accuracy: Share of correct predictions.
        computation: Percent, never-gated parts included, without the gate.
        option_shares: How often each layer ran at each option, and had been left before, float64 ``[layers, actions]``.
    """

    episodes: int
    mean_return: float
    accuracy: float
    computation: float
    option_shares: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What ``ImageStreams.get_state`` returns."""

    keys: list[CountOrZero]
    episodes: list[CountOrZero]


@dataclass(frozen=True, kw_only=True)
class EnvState:
    """What ``SB3GatingVecEnv.get_state`` returns.

    Attributes:
        streams: Where the groups' streams of images are.
        indices: Image of each environment.
        options: Option indices so far, of each environment.
        returns: So far, of each environment.
        positions: Of each environment's price among many; ``None`` for one price.
    """

    streams: StreamState
    indices: list[CountOrZero]
    options: list[list[CountOrZero]]
    returns: list[float]
    positions: list[float] | None


class SB3GatingVecEnv(VecEnv):
    """Walks as Stable-Baselines3 wants them: reset in the step that ends them, ``info`` as one dictionary per environment.

    The same steps as ``DummyVecEnv`` makes over as many ``FractionalSkippingEnv``, in one batch::

        env = SB3GatingVecEnv(make_task(weights={"cost": 5.0}), 256, seed=0)
        PPO("MultiInputPolicy", env).learn(100_000)

    ``images_per_group`` consecutive environments show the same image at the same price, so that their returns differ by the options alone:
    environment ``i`` belongs to group ``i // images_per_group``, and group ``j`` draws as a single environment with seed
    ``seed + j`` would. The last step's ``info`` holds what the single environment's does, ``terminal_observation``,
    ``TimeLimit.truncated``, and ``episode`` with return and length, so no ``VecMonitor`` is needed.

    Where the network has exits, walks are of different lengths. Each environment then begins its next walk at once, and what
    environments of one group show drifts apart. With ``whole_walks`` nothing is reset before all layers have passed: a walk that left
    rests until then. So an update of as many steps as there are layers holds one whole walk of each environment, and a group's walks
    begin at the same image together. While a walk rests, actions do nothing, rewards and observations but for the layer are zero,
    ``done`` is false, because nothing ends, and ``info`` is ``{"resting": True}``. No decision is made there: a learner has to leave
    these steps out, as ``dfs_rl.agents.buffers`` does, and not to count them, as ``dfs_rl.agents.callbacks.WholeWalks`` sees to.

    Args:
        task: Backbone, images, reward, budget.
        n_envs: Number of environments, a multiple of ``images_per_group``.
        images_per_group: Environments that show the same image.
        whole_walks: Begin walks together alone; needed for groups where there are exits.
        seed: Seed of the images' streams; ``None`` for entropy of the system.
        render_mode: ``None`` or ``"rgb_array"``.

    Raises:
        ConfigError: If a value is not allowed.
    """

    @check_types
    def __init__(
        self,
        task: SkipValidation[Task],
        n_envs: int,
        *,
        images_per_group: int = 1,
        whole_walks: bool = False,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        if not isinstance(task, Task):
            raise ConfigError(f"task is {task!r}; needed is what dfs_rl.envs.make_task returns.")
        if images_per_group < 1 or n_envs < 1 or n_envs % images_per_group:
            raise ConfigError(
                f"{n_envs} environments cannot be split into groups of images_per_group = {images_per_group}; it must divide them."
            )
        if images_per_group > 1 and task.backbone.costs.exits and not whole_walks:
            raise ConfigError(
                f"images_per_group is {images_per_group} on a network with exits, whose walks end at different times; pass "
                "whole_walks=True, or a backbone without exits."
            )
        self.task = task
        self.images_per_group = images_per_group
        self.whole_walks = whole_walks
        self.render_mode = render_mode
        self._walks = Walks(task, n_envs)
        self._streams = ImageStreams(n_envs // images_per_group)
        self._returns: NDArray[np.float64] = np.zeros(n_envs)
        self._actions: NDArray[np.int64] = np.zeros(n_envs, dtype=np.int64)
        self._steps = 0
        self._seen: Batch = {}
        self._clear_stats()
        observations = observation_space(task.backbone, dial=task.prices is not None)
        super().__init__(n_envs, observations, action_space(task.backbone))
        if seed is not None:
            self.seed(seed)

    def reset(self) -> VecEnvObs:
        """Begin all walks anew; seeds and ``{"index": i}`` options set before are used once."""
        wanted = [check_options(options, "index").get("index") for options in self._options]
        indices = None
        if any(index is not None for index in wanted):
            indices = per_environment("index", wanted, self.num_envs, np.int64)
        self._streams.seed(self._seeds[: len(self._streams.keys)])
        observation = self._begin_all(indices)
        self.reset_infos = [{"index": index} for index in self._walks.indices]
        if self._walks.prices is not None:
            for info, price in zip(self.reset_infos, self._walks.prices, strict=True):
                info["cost_weight"] = price
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions until ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the actions, and begin anew what has ended, or with ``whole_walks`` everything after the last layer."""
        walks, resting = self._walks, self._walks.ended.copy()
        walks.require_begun()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if resting.all():
            observation = {key: np.zeros_like(value) for key, value in self._seen.items()}
            rewards = np.zeros(self.num_envs)
        else:
            observation, rewards, outcome = walks.advance(self._actions)
            self._returns += rewards
            if outcome is not None:
                self._fill_infos(infos, outcome, observation)
                self._add_stats(outcome)
        self._steps += 1
        for i in np.flatnonzero(resting):
            infos[i]["resting"] = True
        dones = walks.ended & ~resting
        self._seen = observation
        if walks.ended.any():
            self._begin_ended(walks.ended.copy())
        return self._seen, rewards.astype(np.float32), dones, infos

    @property
    def episodes(self) -> int:
        """Episodes that ended since the streams of images began: all that were begun but those under way."""
        begun = int(self._streams.episodes.sum()) * self.images_per_group
        return begun - self.num_envs

    def pop_stats(self) -> EpisodeStats:
        """Return the means over all episodes that ended since the last call, and begin a new count."""
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

    def set_backbone(self, backbone: WalkableBackbone) -> Batch:
        """Take up changed weights: every walk is replayed up to where it is.

        Returns:
            The observations that replace those handed out last.
        """
        walks = self._walks
        walks.require_begun()
        self.task = replace(self.task, backbone=backbone)
        indices, positions = walks.indices, walks.positions
        options = self._options_so_far()
        walks.use(self.task)
        return self._replayed(walks.replay(indices, options, positions))

    def get_state(self) -> dict[str, Any]:
        """Return where streams and walks are, as JSON values; what ``pop_stats`` would return is not part of it."""
        self._walks.require_begun()
        return {
            "streams": self._streams.get_state(),
            "indices": self._walks.indices.tolist(),
            "options": self._options_so_far().tolist(),
            "returns": self._returns.tolist(),
            "positions": None if self._walks.positions is None else self._walks.positions.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> Batch:
        """Go on from a state that ``get_state`` returned: the walks are replayed up to where they were.

        Returns:
            The observations that were handed out last.

        Raises:
            CheckpointError: If the state is not one of as many environments and groups.
        """
        n_groups = len(self._streams.keys)
        if len(state["indices"]) != self.num_envs or len(state["streams"]["keys"]) != n_groups:
            raise CheckpointError(
                f"the stored environments are {len(state['indices'])} in {len(state['streams']['keys'])} groups, but "
                f"{self.num_envs} in {n_groups} are set up."
            )
        if max(state["indices"]) >= len(self.task.images):
            raise CheckpointError(
                f"the stored environments are at image {max(state['indices'])}, but there are {len(self.task.images)}."
            )
        self._streams.set_state(state["streams"])
        self._returns = np.array(state["returns"], dtype=np.float64)
        options = np.array(state["options"], dtype=np.int64).reshape(self.num_envs, -1)
        positions = None if self.task.prices is None else np.array(state["positions"], dtype=float)
        self._steps = options.shape[1]
        indices = np.array(state["indices"], dtype=np.int64)
        return self._replayed(self._walks.replay(indices, options, positions))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are there and keep the cheapest way to an answer within the budget, bool ``[n_envs, n]``."""
        return self._walks.action_masks()

    def close(self) -> None:
        """Nothing is held open."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        if self.render_mode is None:
            return [None] * self.num_envs
        from dfs_rl.envs.rendering import draw_walk

        return [draw_walk(self._walks, i) for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object once per environment; they share everything."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Refuse: the environments share everything, so none can be changed by itself."""
        raise ConfigError(
            f"attribute {attr_name!r} cannot be set to {value!r} for environments {indices}: they run as one batch."
        )

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[Any]:
        """Call a method of the batch and return each environment's part; ``action_masks`` is the one there is."""
        if method_name != "action_masks" or method_args or method_kwargs:
            raise AttributeError(
                f"the environments have no method {method_name!r}; allowed is 'action_masks', without arguments."
            )
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],  # noqa: ARG002 - nothing is wrapped
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """Return that no environment is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _begin_all(self, indices: NDArray[np.int64] | None) -> Batch:
        if indices is None:
            indices = np.repeat(self._streams.draw(len(self.task.images)), self.images_per_group)
        self._returns = np.zeros(self.num_envs)
        self._steps = 0
        positions = choose_positions(self.task, self._streams, None, repeats=self.images_per_group)
        self._seen = self._walks.begin(indices, positions)
        return self._seen

    def _begin_ended(self, ended: NDArray[np.bool_]) -> None:
        """Begin anew what is due, and let ``_seen`` show it."""
        if self.whole_walks and self._steps < self.task.backbone.costs.n_layers:
            self._seen["layer"][ended] = self._steps
        elif ended.all():
            self._begin_all(None)
        else:
            which = np.flatnonzero(ended)  # each is a group of its own
            self._returns[which] = 0.0
            indices = self._streams.draw(len(self.task.images), which)
            positions = choose_positions(self.task, self._streams, None, which=which)
            begun = self._walks.begin(indices, positions, which=which)
            self._seen = replaced(self._seen, begun, which)

    def _options_so_far(self) -> NDArray[np.int64]:
        """Return what the walks did since they began together, int64 ``[n_envs, steps]``.

        Raises:
            ConfigError: If they did not.
        """
        if self.task.backbone.costs.exits and not self.whole_walks:
            raise ConfigError(
                "on a network with exits, environments can be stored or take up weights only with whole_walks=True."
            )
        return self._walks.options[:, : self._steps]

    def _replayed(self, observation: Batch) -> Batch:
        """Show where the walks are, those that rest like before."""
        self._seen = observation
        self._seen["layer"][self._walks.ended] = self._steps
        return self._seen

    def _fill_infos(
        self, infos: list[dict[str, Any]], outcome: Outcome, observation: Batch
    ) -> None:
        # As in the single environment: Python's truth values, and NumPy's numbers.
        named = {
            key: value.tolist() if value.dtype == np.bool_ else list(value)
            for key, value in outcome.info().items()
        }
        keys = list(named)
        n_layers = self.task.backbone.costs.n_layers
        features, layers, contexts = (
            observation["features"],
            observation["layer"],
            observation["context"],
        )
        returns = self._returns[outcome.walks].tolist()
        for i, values, total in zip(
            outcome.walks.tolist(), zip(*named.values(), strict=True), returns, strict=True
        ):
            info = infos[i]
            info.update(zip(keys, values, strict=True))
            info["TimeLimit.truncated"] = False
            info["terminal_observation"] = {
                "features": features[i],
                "layer": layers[i],
                "context": contexts[i],
            }
            length = min(info.get("walked", n_layers) + 1, n_layers)  # leaving is a step as well
            info["episode"] = {"r": total, "l": length}

    def _clear_stats(self) -> None:
        costs = self.task.backbone.costs
        self._episodes = 0
        self._sum_returns = self._sum_correct = self._sum_computation = 0.0
        self._option_counts: NDArray[np.float64] = np.zeros((costs.n_layers, costs.n_actions))

    def _add_stats(self, outcome: Outcome) -> None:
        self._episodes += len(outcome.walks)
        self._sum_returns += float(self._returns[outcome.walks].sum())
        self._sum_correct += float(outcome.correct.sum())
        self._sum_computation += float(outcome.computation.sum())
        options = self._walks.options[outcome.walks]  # [n, layers]
        n_options = self._option_counts.shape[1]
        for layer in range(options.shape[1]):
            self._option_counts[layer] += np.bincount(options[:, layer], minlength=n_options)
