"""Parts shared by all forms of the environment: spaces, step results and reset options."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.gating.model import bits_of
from dfs_rl.gating.observation import FEATURE_LIMIT, Observation, context_size, observation_width
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.reward import PredictionScores

NumberT = TypeVar("NumberT", np.int64, np.float64)

RenderMode = Literal["rgb_array"]
METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}

ObservationBatch = dict[str, NDArray[Any]]
"""Batched observation.

``features`` float32 ``[n, width]``, ``layer`` int64 ``[n]``, ``context`` float32 ``[n, size]``.
"""


class EpisodeResult(NamedTuple):
    """Results of ``n`` finished episodes.

    Attributes:
        episodes: Indices of the episodes in the batch, int64 ``[n]``.
        info: Entries of the last step's ``info``, batched, see ``FractionalSkippingEnv``.
    """

    episodes: NDArray[np.int64]
    info: dict[str, NDArray[Any]]

    def infos(self) -> list[dict[str, Any]]:
        """Return the ``info`` of each episode, of NumPy scalars, arrays and Python booleans."""
        # Gymnasium's vector environments batch Python booleans, but not NumPy's.
        columns = [
            value.tolist() if value.dtype == np.bool_ else list(value)
            for value in self.info.values()
        ]
        return [dict(zip(self.info, row, strict=True)) for row in zip(*columns, strict=True)]


def concatenate_results(results: list[EpisodeResult]) -> EpisodeResult | None:
    """Return results as one batch; ``None`` for an empty list."""
    if len(results) < 2:  # noqa: PLR2004 - nothing to concatenate
        return results[0] if results else None
    episodes, infos = zip(*results, strict=True)
    info = {key: np.concatenate([each[key] for each in infos]) for key in infos[0]}
    return EpisodeResult(np.concatenate(episodes), info)


def final_info(
    costs: CostTable, options: torch.Tensor, scores: PredictionScores, labels: torch.Tensor
) -> dict[str, NDArray[Any]]:
    """Return what ``info`` tells about the answers of episodes, batched."""
    correct = to_numpy(scores.correct)
    info = {
        "label": to_numpy(labels),
        "prediction": to_numpy(scores.prediction),
        "correct": correct,
        "is_success": correct,  # Stable-Baselines3 logs its mean as rollout/success_rate
        "bits": to_numpy(bits_of(costs, options)),
    }
    if costs.exits:
        info["n_layers_run"] = to_numpy(costs.n_layers_run(options))
    return info


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor of any device as an array."""
    return tensor.cpu().numpy()


def observation_arrays(observation: Observation) -> ObservationBatch:
    """Return an observation as arrays."""
    return {
        "features": to_numpy(observation.features),
        "layer": np.full(len(observation.features), observation.layer, dtype=np.int64),
        "context": to_numpy(observation.context),
    }


def merge_observations(
    parts: list[tuple[torch.Tensor | None, Observation]], n: int
) -> ObservationBatch:
    """Return the observation of ``n`` episodes from those of rows, ``None`` for all; else 0."""
    if parts[0][0] is None:
        return observation_arrays(parts[0][1])
    merged: ObservationBatch = {}
    for rows, part in parts:
        assert rows is not None, "one observation covers all episodes"
        for key, value in observation_arrays(part).items():
            if key not in merged:
                merged[key] = np.zeros((n, *value.shape[1:]), dtype=value.dtype)
            merged[key][to_numpy(rows)] = value
    return merged


def observation_space(
    backbone: GatedBackbone, *, budget_conditioning: bool, passes: PassSettings = SINGLE_PASS
) -> spaces.Dict:
    """Return the observation space of one environment, with or without budget conditioning."""
    context = context_size(budget_conditioning=budget_conditioning, passes=passes)
    width = observation_width(backbone)
    return spaces.Dict(
        {
            "features": spaces.Box(-FEATURE_LIMIT, FEATURE_LIMIT, (width,), np.float32),
            "layer": spaces.Discrete(backbone.costs.n_layers + (passes.limit > 1)),
            "context": spaces.Box(0.0, 1.0, (context,), np.float32),
        }
    )


def flatten_observations(space: spaces.Dict, observations: ObservationBatch) -> NDArray[Any]:
    """Return a batch flattened as ``gymnasium.spaces.flatten`` does one observation, ``[n, size]``.

    ``Discrete`` entries are one-hot, which makes the data type float64, as in ``flatten_space``.
    """
    columns = [
        np.eye(part.n, dtype=np.int64)[observations[key]]
        if isinstance(part, spaces.Discrete)
        else observations[key]
        for key, part in space.items()
    ]
    return np.concatenate(columns, axis=1)


def observation_bytes(space: spaces.Dict) -> int:
    """Return the memory size of one observation in bytes."""
    parts = space.spaces.values()
    return sum(np.dtype(part.dtype).itemsize * math.prod(part.shape or ()) for part in parts)


def action_space(backbone: GatedBackbone, passes: PassSettings = SINGLE_PASS) -> spaces.Discrete:
    """Return the action space of one environment."""
    return spaces.Discrete(passes.n_actions(backbone.costs))


def check_options(options: object, *allowed: str) -> Mapping[str, Any]:
    """Validate and return the options of ``reset``; empty for ``None``."""
    options = {} if options is None else options
    names = f"allowed are {', '.join(allowed)}" if allowed else "this environment has none"
    if not isinstance(options, Mapping):
        raise ConfigError(f"options is {options!r}; needed is a mapping, in which {names}.")
    for name in options:
        if name not in allowed:
            raise ConfigError(f"options[{name!r}] is not an option of reset; {names}.")
    return options


def per_environment(name: str, value: object, n: int, dtype: type[NumberT]) -> NDArray[NumberT]:
    """Return a ``reset`` option, one number or one for each of ``n`` environments, ``[n]``."""
    try:
        values = np.asarray(value)
    except ValueError:  # lists of different lengths
        values = np.empty(0, dtype=object)
    whole = issubclass(dtype, np.integer)
    if values.dtype.kind not in ("iu" if whole else "iuf") or values.shape not in ((), (n,)):
        number = "a whole number" if whole else "a number"
        several = "" if n == 1 else f", or one for each of {n} environments"
        raise ConfigError(f"options[{name!r}] is {value!r}; needed is {number}{several}.")
    return np.array(np.broadcast_to(values, (n,)), dtype=dtype)
