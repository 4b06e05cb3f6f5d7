"""Types of environment arguments, as Python objects or JSON, and their validation."""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, SkipValidation, ValidationError, validate_call

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import Dataset, ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.utils.config.errors import allowed

P = ParamSpec("P")
R = TypeVar("R")

# ``make_task`` validates these types.
BackboneLike = SkipValidation[str | Path | WalkableBackbone | None]
DatasetLike = SkipValidation[str | Path | Dataset | ImageSet | None]
DeviceLike = SkipValidation[str | torch.device]
RewardLike = SkipValidation[RewardWeights | Mapping[str, object] | None]

# JSON has no tuples.
Pair = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list | np.ndarray) else value),
]


def check_types(function: Callable[P, R]) -> Callable[P, R]:
    """Validate a function's arguments against its annotations before each call.

    The decorated function raises ``ConfigError`` for an argument of a wrong type, and for a number
    that is not finite.
    """
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    checked = validate_call(config=strict)(function)
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if isinstance(value, np.number | np.bool_):
                bound.arguments[name] = value.item()
        try:
            return checked(*bound.args, **bound.kwargs)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            place = faults[0]["loc"][0]
            name = list(bound.arguments)[place] if isinstance(place, int) else place
            value = reprlib.repr(bound.arguments[name])
            words = "allowed is " + " or ".join(
                dict.fromkeys(allowed(fault) for fault in faults if fault["loc"][0] == place)
            )
            if faults[0]["type"] == "finite_number":
                words = "it must be finite"
            raise ConfigError(f"{name} is {value}; {words}.") from None

    return call
