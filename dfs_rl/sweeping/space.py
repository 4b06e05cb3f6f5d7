"""Search space of a sweep: the domain of each setting, by its dotted name."""

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray import tune

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import PositiveFloat, configuration

Scalar = bool | int | float | str | None
Choice = Scalar | tuple[Scalar, ...]
_KINDS = ("uniform", "loguniform", "quniform", "randint", "choice", "grid")
_ROUNDING = 1e-9


@configuration
class Domain:
    """Domain of one setting; exactly one of these is given.

    Attributes:
        uniform: Numbers between the first and the second value.
        loguniform: Numbers between both values, uniform in the logarithm; both above 0.
        quniform: Numbers from the first to the second value, at intervals of the third.
        randint: Integers from the first to the second value, both included.
        choice: One of these values.
        grid: Each of these values, in every combination with the other grids.
    """

    uniform: tuple[float, float] | None = None
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    quniform: tuple[float, float, PositiveFloat] | None = None
    randint: tuple[int, int] | None = None
    choice: tuple[Choice, ...] | None = None
    grid: tuple[Choice, ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "nothing"
            raise ConfigError(f"{names} is given; give one of {', '.join(_KINDS)}.")
        kind = self.kind
        if kind in ("choice", "grid"):
            words = [encode_value(value) for value in self.values]
            repeated = [word for word in words if words.count(word) > 1]
            if repeated or not words:
                fault = f"has {repeated[0]} twice" if repeated else "is empty"
                raise ConfigError(f"{kind} {fault}; give at least one value, each once.")
            return
        low, high = self.ends
        if not low < high:
            raise ConfigError(f"{kind} is {low:g} to {high:g}; give the lower end first.")
        if self.quniform is not None and self.quniform[2] > high - low:
            raise ConfigError(
                f"{kind} has intervals of {self.quniform[2]:g}; allowed are intervals up to "
                f"{high - low:g}, the distance of the ends."
            )

    @property
    def kind(self) -> str:
        """Name of the given attribute."""
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Choice, ...]:
        """Values of a choice or a grid; empty for a range."""
        return self.choice or self.grid or ()

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of a range."""
        low, high = getattr(self, self.kind)[:2]
        return low, high

    @property
    def steps(self) -> tuple[float, ...]:
        """Values of ``quniform``, from its lower end."""
        assert self.quniform is not None
        low, high, step = self.quniform
        count = math.floor((high - low) / step + _ROUNDING)
        return tuple(round(low + number * step, 12) for number in range(count + 1))

    @property
    def samples(self) -> tuple[Choice, ...]:
        """Values that validate the domain: every choice, or the ends of a range."""
        return self.values or self.ends


def encode_value(value: object) -> str:
    """Encode a value as text, for searchers that accept only text: JSON, or a plain word."""
    if isinstance(value, str) and decode_value(value) == value:
        return value
    return json.dumps(value)


def decode_value(word: str) -> Choice:
    """Decode a value from ``encode_value``."""
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return tuple(value) if isinstance(value, list) else value


def tune_domain(domain: Domain) -> Any:  # noqa: ANN401 - grids are plain dicts
    """Return the domain for Ray Tune; values of a choice are encoded as text."""
    if domain.values:
        words = [encode_value(value) for value in domain.values]
        return tune.grid_search(words) if domain.grid else tune.choice(words)
    if domain.quniform is not None:
        # Tune's quniform starts its intervals at 0, not at the lower end.
        return tune.choice(list(domain.steps))
    if domain.randint is not None:
        first, last = domain.randint
        return tune.randint(first, last + 1)  # Tune excludes the upper end
    return (tune.loguniform if domain.loguniform else tune.uniform)(*domain.ends)


def optuna_distribution(domain: Domain) -> BaseDistribution:
    """Return the domain for Optuna; values of a choice are encoded as text."""
    if domain.values:
        return CategoricalDistribution([encode_value(value) for value in domain.values])
    if domain.randint is not None:
        return IntDistribution(*domain.randint)
    low, high = domain.ends
    if domain.quniform is not None:
        return FloatDistribution(low, domain.steps[-1], step=domain.quniform[2])
    return FloatDistribution(low, high, log=domain.loguniform is not None)


def with_settings(settings: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of nested settings with the values at some dotted names replaced.

    A number in a name is an index into a list: ``cost_weight_range.0`` is the first cost weight.
    """
    updated = copy.deepcopy(dict(settings))
    for name, value in values.items():
        *path, last = name.split(".")
        block: Any = updated
        for part in path:
            key = _key(block, part, name)
            if isinstance(block, dict) and block.get(part) is None:
                block[part] = {}
            block = block[key]
        block[_key(block, last, name)] = list(value) if isinstance(value, tuple) else value
    return updated


def get_setting(settings: Mapping[str, Any], name: str) -> object:
    """Return the value at a dotted name, as in ``with_settings``, or raise KeyError."""
    found: Any = settings
    for part in name.split("."):
        found = found[_key(found, part, name)]
    return found


def _key(block: object, part: str, name: str) -> str | int:
    """Return the key or the index of a part of a dotted name."""
    if isinstance(block, dict):
        return part
    if not isinstance(block, list):
        raise ConfigError(f"{name} leads through {block!r}, which has no settings of its own.")
    if not (part.isdecimal() and int(part) < len(block)):
        raise ConfigError(
            f"{name} leads to item {part!r} of a list that has items 0 to {len(block) - 1}."
        )
    return int(part)
