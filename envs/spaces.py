"""Parts shared by all forms of the environment: spaces, step results and reset options."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.envs.sampling import ALL, ImageSampler, StreamIndices
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.gating.observation import FEATURE_LIMIT, context_size, observation_width

NumberT = TypeVar("NumberT", np.int64, np.float64)

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}

ObservationBatch = dict[str, NDArray[Any]]
"""Batched observation.

``features`` float32 ``[n, width]``, ``layer`` int64 ``[n]``, ``context`` float32 ``[n, 3 or 4]``.
"""


class EpisodeResult(NamedTuple):
    """Results of ``n`` finished episodes.

    Attributes:
        episodes: Indices of the episodes in the batch, int64 ``[n]``.
        image: Index of the image in the split, int64 ``[n]``.
        label: Class of the image, int64 ``[n]``.
        prediction: Most likely class, int64 ``[n]``.
        correct: True if prediction and label agree, bool ``[n]``.
        computation: Percent, never-gated parts included, without a gate, float64 ``[n]``.
        bits: Bit width of each layer, 0 for layers that did not run, int64 ``[n, layers]``.
        probabilities: Probability of each class, float32 ``[n, classes]``.
        n_layers_run: Number of layers the image passed, int64 ``[n]``; ``None`` without exits.
    """

    episodes: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    computation: NDArray[np.float64]
    bits: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    n_layers_run: NDArray[np.int64] | None

    def info(self) -> dict[str, NDArray[Any]]:
        """Return the entries of the last step's ``info``, batched."""
        named = self._asdict()
        del named["episodes"], named["probabilities"]
        if self.n_layers_run is None:
            del named["n_layers_run"]
        # Stable-Baselines3 logs the mean of "is_success" as rollout/success_rate.
        return {"index": named.pop("image"), **named, "is_success": self.correct}


class Transition(NamedTuple):
    """Result of a step of ``n`` episodes.

    Attributes:
        observation: Next observation; zeros for episodes that had ended before the step.
        reward: float64 ``[n]``.
        result: Results of the episodes that ended in this step; ``None`` if none did.
    """

    observation: ObservationBatch
    reward: NDArray[np.float64]
    result: EpisodeResult | None


def observation_space(backbone: WalkableBackbone, *, budget_conditioning: bool) -> spaces.Dict:
    """Return the observation space of one environment, with or without budget conditioning."""
    width, context = (
        observation_width(backbone),
        context_size(budget_conditioning=budget_conditioning),
    )
    return spaces.Dict(
        {
            "features": spaces.Box(-FEATURE_LIMIT, FEATURE_LIMIT, (width,), np.float32),
            "layer": spaces.Discrete(backbone.costs.n_layers),
            "context": spaces.Box(0.0, 1.0, (context,), np.float32),
        }
    )


def replace_rows(
    observation: ObservationBatch, started: ObservationBatch, which: StreamIndices
) -> ObservationBatch:
    """Return a copy of an observation with the rows of some environments replaced."""
    copy = {key: value.copy() for key, value in observation.items()}
    for key, values in copy.items():
        values[which] = started[key]
    return copy


def observation_bytes(space: spaces.Dict) -> int:
    """Return the memory size of one observation in bytes."""
    parts = space.spaces.values()
    return sum(np.dtype(part.dtype).itemsize * math.prod(part.shape or ()) for part in parts)


def action_space(backbone: WalkableBackbone) -> spaces.Discrete:
    """Return the action space of one environment."""
    return spaces.Discrete(backbone.costs.n_actions)


def check_options(options: object, *allowed: str) -> Mapping[str, Any]:
    """Validate and return the options of ``reset``; empty for ``None``.

    Raises:
        ConfigError: If the options are not a mapping, or one of them is not allowed.
    """
    options = {} if options is None else options
    names = f"allowed are {', '.join(allowed)}" if allowed else "this environment has none"
    if not isinstance(options, Mapping):
        raise ConfigError(f"options is {options!r}; needed is a mapping, in which {names}.")
    for name in options:
        if name not in allowed:
            raise ConfigError(f"options[{name!r}] is not an option of reset; {names}.")
    return options


def per_environment(name: str, wanted: object, n: int, dtype: type[NumberT]) -> NDArray[NumberT]:
    """Return the values of a ``reset`` option for ``n`` environments, ``[n]``.

    Args:
        name: Name of the option.
        wanted: A number, or one for each environment.
        n: Number of environments.
        dtype: Type of the numbers; an integer type requires integers.

    Raises:
        ConfigError: If the type or the length is wrong.
    """
    try:
        values = np.asarray(wanted)
    except ValueError:  # lists of different lengths
        values = np.empty(0, dtype=object)
    whole = issubclass(dtype, np.integer)
    if values.dtype.kind not in ("iu" if whole else "iuf") or values.shape not in ((), (n,)):
        number = "a whole number" if whole else "a number"
        several = "" if n == 1 else f", or one for each of {n} environments"
        raise ConfigError(f"options[{name!r}] is {wanted!r}; needed is {number}{several}.")
    return np.array(np.broadcast_to(values, (n,)), dtype=dtype)


def sample_preferences(
    task: Task,
    streams: ImageSampler,
    wanted: object,
    *,
    repeats: int = 1,
    which: StreamIndices = ALL,
) -> NDArray[np.float64] | None:
    """Return the preference of each episode, from given cost weights or drawn at random.

    Args:
        task: Task of the episodes.
        streams: Sampler of the draws.
        wanted: A cost weight, or one for each episode; ``None`` draws at random.
        repeats: Number of episodes that share a draw.
        which: Streams to draw from.

    Returns:
        float64 ``[n]``, or ``None`` for a task without budget conditioning.

    Raises:
        ConfigError: If a cost weight is given that is out of range, or the task has no range.
    """
    if task.cost_weight_range is None:
        if wanted is not None:
            raise ConfigError(
                f"options['cost_weight'] is {wanted!r}, but this environment was made without "
                "cost_weight_range and has one price, "
                f"{task.reward.cost:g}."
            )
        return None
    if wanted is None:
        return np.repeat(streams.preferences(which), repeats)
    n = len(streams.keys) * repeats
    weights = per_environment("cost_weight", wanted, n, np.float64)[which]
    return np.array([task.cost_weight_range.preference(float(weight)) for weight in weights])
