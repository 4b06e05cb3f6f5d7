"""Search space of a sweep: the domain of each setting, by its dotted name."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from dfs_rl.errors import ConfigError

Scalar = bool | int | float | str | None
Choice = Scalar | tuple[Scalar, ...]
_ROUNDING = 1e-9
Scale = Literal["linear", "log", "choices"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Domain of one setting; exactly one of these is given.

    Attributes:
        uniform: Numbers between the first and the second value.
        loguniform: Numbers between both values, uniform in the logarithm; both above 0.
        quniform: Numbers from the first to the second value, at intervals of the third.
        randint: Integers from the first to the second value, both included.
        choice: One of these values.
        grid: Each of these values, in every combination with the other grids.

    Raises:
        ConfigError: If none or more than one of them is given, or its values are invalid.
    """

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    quniform: tuple[float, float, float] | None = None
    randint: tuple[int, int] | None = None
    choice: tuple[Choice, ...] | None = None
    grid: tuple[Choice, ...] | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        names = ", ".join(field.name for field in fields(self))
        if len(given) != 1:
            said = f"both {given[0]} and {given[1]} are given" if given else "nothing is given"
            raise ConfigError(f"{said}; give one of {names}.")
        if self.kind in ("choice", "grid"):
            self._check_values()
        else:
            self._check_range()

    def _check_values(self) -> None:
        words = [encode_value(value) for value in self.values]
        if not words:
            raise ConfigError(f"{self.kind} is empty; give at least one value.")
        for word in words:
            if words.count(word) > 1:
                raise ConfigError(f"{self.kind} has {word} twice; each value counts once.")

    def _check_range(self) -> None:
        low, high = self.ends
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(
                f"{self.kind} runs from {low:g} to {high:g}; both must be finite, the lower one "
                "first."
            )
        if self.loguniform is not None and low <= 0:
            raise ConfigError(f"loguniform begins at {low:g}; a logarithmic axis begins above 0.")
        if self.quniform is not None and not 0 < self.quniform[2] <= high - low:
            raise ConfigError(
                f"quniform has steps of {self.quniform[2]:g}; they must be above 0 and no longer "
                f"than from {low:g} to {high:g}."
            )

    @property
    def kind(self) -> str:
        """Name of the given attribute."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def values(self) -> tuple[Choice, ...]:
        """Values of a choice or a grid; empty for a range."""
        return self.choice or self.grid or ()

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of a range."""
        given: Sequence[float] = getattr(self, self.kind)
        return given[0], given[1]

    @property
    def steps(self) -> tuple[float, ...]:
        """Values of ``quniform`` from the lower end.

        The upper end is included if an interval ends there.
        """
        assert self.quniform is not None
        low, high, step = self.quniform
        count = math.floor((high - low) / step + _ROUNDING)
        return tuple(round(low + number * step, 12) for number in range(count + 1))

    @property
    def is_continuous(self) -> bool:
        """True if all real numbers between the ends are allowed."""
        return self.kind in ("uniform", "loguniform")

    @property
    def scale(self) -> Scale:
        """Axis on which the values are evenly spaced."""
        if self.values:
            return "choices"
        return "log" if self.loguniform is not None else "linear"

    def samples(self) -> tuple[Choice, ...]:
        """Return values to validate the domain with: every choice, or the ends of a range."""
        return self.values or self.ends


def encode_value(value: object) -> str:
    """Encode a value as text, for searchers that accept only text."""
    return json.dumps(value)


def decode_value(word: str) -> Choice:
    """Decode a value from ``encode_value``."""
    value = json.loads(word)
    return tuple(value) if isinstance(value, list) else value


def with_settings(settings: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """Return nested settings with some values replaced.

    Args:
        settings: Nested settings as in a configuration file; not changed.
        values: New values by dotted name. A number is an index into a list:
            ``cost_weight_range.0`` is the first of the cost weights.

    Raises:
        ConfigError: If a name leads through a value without entries, or beyond a list's end.
    """
    updated: Any = dict(settings)
    for name, value in values.items():
        updated = _with_setting(updated, name.split("."), value, name)
    return dict(updated)


def _with_setting(inside: object, path: Sequence[str], value: object, name: str) -> object:
    if not path:
        return list(value) if isinstance(value, tuple) else value
    first, rest = path[0], path[1:]
    if isinstance(inside, list | tuple):
        if not (first.isdecimal() and int(first) < len(inside)):
            raise ConfigError(
                f"{name} leads to item {first!r} of a list that has items 0 to {len(inside) - 1}."
            )
        items = list(inside)
        items[int(first)] = _with_setting(items[int(first)], rest, value, name)
        return items
    if inside is None:
        inside = {}
    if not isinstance(inside, Mapping):
        raise ConfigError(f"{name} leads through {inside!r}, which has no settings of its own.")
    return {**inside, first: _with_setting(inside.get(first), rest, value, name)}


def get_setting(settings: Mapping[str, Any], name: str) -> object:
    """Return the value at a dotted name, as in ``with_settings``.

    Raises:
        KeyError: If there is no such setting.
    """
    found: Any = settings
    for part in name.split("."):
        if isinstance(found, list | tuple) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise KeyError(name)
    return found
