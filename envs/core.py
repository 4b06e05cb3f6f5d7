"""The one implementation underneath every form of the environment: a batch of walks in lock-step."""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.errors import ConfigError
from dfs_rl.gating.masks import action_masks
from dfs_rl.gating.observation import FEATURE_LIMIT, context_size, observation_width, observe
from dfs_rl.gating.reward import judge, step_cost, terminal_reward
from dfs_rl.gating.walk import finish, start, step
from envs.streams import ImageStreams
from envs.task import Task

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}

Batch = dict[str, NDArray[Any]]
"""Observations: ``features`` float32 ``[n, width]``, ``layer`` int64 ``[n]``, ``context`` float32 ``[n, 3 or 4]``."""


class Outcome(NamedTuple):
    """What came of ``n`` finished walks.

    Attributes:
        image: Index of the image in the split, int64 ``[n]``.
        label: Its class, int64 ``[n]``.
        prediction: Most likely class, int64 ``[n]``.
        correct: Whether the two agree, bool ``[n]``.
        computation: Percent, never-gated parts included, without a gate, float64 ``[n]``.
        bits: Bit width of each layer, int64 ``[n, layers]``.
        probabilities: Of each class, float32 ``[n, classes]``.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    computation: NDArray[np.float64]
    bits: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def info(self) -> dict[str, NDArray[Any]]:
        """Return what the ``info`` of the last step carries, batched."""
        named = self._asdict()
        del named["probabilities"]
        return {"index": named.pop("image"), **named}


class Transition(NamedTuple):
    """What a step of ``n`` walks returns.

    Attributes:
        observation: What to choose by next.
        reward: float64 ``[n]``.
        outcome: Set after the last layer.
    """

    observation: Batch
    reward: NDArray[np.float64]
    outcome: Outcome | None


def observation_space(backbone: WalkableBackbone, *, dial: bool) -> spaces.Dict:
    """Return the observation space of one environment, with the position of a dial or without."""
    width, context = observation_width(backbone), context_size(dial=dial)
    return spaces.Dict(
        {
            "features": spaces.Box(-FEATURE_LIMIT, FEATURE_LIMIT, (width,), np.float32),
            "layer": spaces.Discrete(backbone.costs.n_layers),
            "context": spaces.Box(0.0, 1.0, (context,), np.float32),
        }
    )


def observation_bytes(space: spaces.Dict) -> int:
    """Return what one observation takes in memory."""
    parts = space.spaces.values()
    return sum(np.dtype(part.dtype).itemsize * math.prod(part.shape or ()) for part in parts)


def action_space(backbone: WalkableBackbone) -> spaces.Discrete:
    """Return the action space of one environment."""
    return spaces.Discrete(len(backbone.options))


def choose_positions(
    task: Task, streams: ImageStreams, wanted: object, *, repeats: int = 1
) -> NDArray[np.float64] | None:
    """Return where each walk's price lies on the task's dial: as wanted, or as drawn.

    Args:
        task: What is walked.
        streams: Give the draws.
        wanted: A cost weight, or one for each walk; ``None`` draws.
        repeats: Walks that share a draw.

    Returns:
        float64 ``[n]``, or ``None`` where the task has no dial.

    Raises:
        ConfigError: If a cost weight is wanted that the task does not draw from.
    """
    if task.prices is None:
        if wanted is not None:
            raise ConfigError(
                f"options['cost_weight'] is {wanted!r}, but this environment was made without cost_weights and has one price, "
                f"{task.weights.cost:g}."
            )
        return None
    if wanted is None:
        return np.repeat(streams.positions(), repeats)
    n = len(streams.keys) * repeats
    weights = np.broadcast_to(np.asarray(wanted, dtype=np.float64), (n,))
    return np.array([task.prices.position(float(weight)) for weight in weights])


class Walks:
    """``n`` walks through one frozen backbone, all at the same layer.

    Args:
        task: Backbone, images, reward, budget.
        n: Number of walks.
    """

    def __init__(self, task: Task, n: int) -> None:
        if n < 1:
            raise ConfigError(f"num_envs is {n}; at least 1 is needed.")
        self.n = n
        self.indices: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.positions: NDArray[np.float64] | None = None
        self.outcome: Outcome | None = None
        self.use(task)

    def use(self, task: Task) -> None:
        """Take up another task; the walks must begin anew or be replayed before the next step."""
        self.task = task
        self._device = task.images.images.device
        self._menu = np.array(task.backbone.options.values, dtype=np.int64)
        self._gated_budget = task.gated_budget

    @property
    def layer(self) -> int:
        """The layer to choose for; the number of layers at the end."""
        return self._state.layer

    @property
    def done(self) -> bool:
        """Whether all layers have run."""
        return self._state.layer == self.task.backbone.costs.n_layers

    @property
    def options(self) -> NDArray[np.int64]:
        """Options chosen so far, int64 ``[n, layer]``."""
        return _to_numpy(self._state.options[:, : self._state.layer])

    @property
    def bits(self) -> NDArray[np.int64]:
        """Bit widths chosen so far, int64 ``[n, layer]``."""
        return self._menu[self.options]

    @property
    def prices(self) -> NDArray[np.float64] | None:
        """Cost weight of each walk, float64 ``[n]``; ``None`` where the task has no dial."""
        return None if self._prices is None else _to_numpy(self._prices)

    @property
    def computation(self) -> NDArray[np.float64]:
        """Percent spent so far, never-gated parts included, float64 ``[n]``."""
        fixed = self.task.backbone.costs.fixed_cost()
        return 100.0 * (_to_numpy(self._state.spent) + fixed)

    @torch.inference_mode()
    def begin(
        self, indices: NDArray[np.int64], positions: NDArray[np.float64] | None = None
    ) -> Batch:
        """Show image ``indices[i]`` of the split to walk ``i`` and run the stem.

        Args:
            indices: int64 ``[n]``.
            positions: Of the task's dial for each walk, float64 ``[n]``; ``None`` where there is none.
        """
        n_images = len(self.task.images)
        if indices.shape != (self.n,) or indices.min() < 0 or indices.max() >= n_images:
            raise ConfigError(
                f"image index {indices.tolist()} is not allowed; needed are {self.n} numbers from 0 to {n_images - 1}."
            )
        self.indices, self.positions = indices, positions
        self.outcome = None
        images = self.task.images
        rows = torch.from_numpy(indices).to(self._device)
        self._labels = images.labels[rows]
        self._state = start(self.task.backbone, images.images[rows])
        self._turn(positions)
        return self._observe()

    @torch.inference_mode()
    def advance(self, actions: NDArray[np.integer[Any]]) -> Transition:
        """Run the next layer, walk ``i`` at option ``actions[i]``."""
        task, before = self.task, self._state.spent
        options = torch.from_numpy(self._checked(actions)).to(self._device)
        self._state = step(task.backbone, self._state, options, reuse=True)
        reward = -step_cost(task.weights, self._state.spent - before, prices=self._prices)
        if self.done:
            logits = finish(task.backbone, self._state)
            verdict = judge(logits, self._labels)
            reward += terminal_reward(
                task.weights,
                verdict,
                self._state.spent,
                gated_budget=self._gated_budget,
                prices=self._prices,
            )
            self.outcome = Outcome(
                image=self.indices,
                label=_to_numpy(self._labels),
                prediction=_to_numpy(verdict.prediction),
                correct=_to_numpy(verdict.correct),
                computation=self.computation,
                bits=self.bits,
                probabilities=_to_numpy(logits.softmax(dim=1)),
            )
        return Transition(
            observation=self._observe(), reward=_to_numpy(reward), outcome=self.outcome
        )

    @torch.inference_mode()
    def replay(
        self,
        indices: NDArray[np.int64],
        options: NDArray[np.int64],
        positions: NDArray[np.float64] | None = None,
    ) -> Batch:
        """Begin at ``indices`` and walk on at ``options``, int64 ``[n, layer]``; used to restore walks, without rewards."""
        observation = self.begin(indices, positions)
        for layer in range(options.shape[1]):
            chosen = torch.from_numpy(self._checked(options[:, layer])).to(self._device)
            self._state = step(self.task.backbone, self._state, chosen, reuse=True)
        return observation if options.shape[1] == 0 else self._observe()

    @torch.inference_mode()
    def action_masks(self) -> NDArray[np.bool_]:
        """Return which options keep the cheapest completion within the budget, bool ``[n, options]``."""
        if self.done:
            return np.ones((self.n, len(self._menu)), dtype=np.bool_)
        task, state = self.task, self._state
        return _to_numpy(
            action_masks(
                task.backbone.costs, state.layer, state.spent, task.budget, gate_macs=task.gate_macs
            )
        )

    def _turn(self, positions: NDArray[np.float64] | None) -> None:
        """Keep what the positions of the dial mean: what the gate sees, and the prices."""
        range_ = self.task.prices
        if range_ is None:
            self._turned = self._prices = None
            return
        assert positions is not None, "with a dial, each walk has its position"
        exact = torch.from_numpy(positions).to(self._device)
        self._turned, self._prices = exact.float(), range_.weights(exact)

    def _observe(self) -> Batch:
        seen = observe(
            self.task.backbone, self._state, budget=self.task.budget, positions=self._turned
        )
        return {
            "features": _to_numpy(seen.features),
            "layer": np.full(self.n, seen.layer, dtype=np.int64),
            "context": _to_numpy(seen.context),
        }

    def _checked(self, actions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the actions as a contiguous int64 array that torch can share."""
        fits = actions.shape == (self.n,) and actions.dtype.kind in "iu"
        if not fits or actions.min() < 0 or actions.max() >= len(self._menu):
            raise gymnasium.error.InvalidAction(
                f"action {actions.tolist()} is not allowed; needed are {self.n} whole numbers from 0 to {len(self._menu) - 1}."
            )
        return np.ascontiguousarray(actions, dtype=np.int64)


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()
