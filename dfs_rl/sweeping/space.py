"""What a sweep searches: for each setting, by its dotted name, the values that it may take."""

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
    """The values that one setting may take; exactly one of these is given.

    Attributes:
        uniform: Numbers from the first to the second.
        loguniform: The same, even on a logarithmic axis; both above 0.
        quniform: Numbers from the first to the second in steps of the third.
        randint: Whole numbers from the first to the second, both included.
        choice: Any of these.
        grid: Each of these in turn, with every combination of the other grids.

    Raises:
        ConfigError: If there is none or more than one of them, or nothing to search in it.
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
        """Which of them is given."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def values(self) -> tuple[Choice, ...]:
        """The values of a choice or a grid; none for a range."""
        return self.choice or self.grid or ()

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of a range."""
        given: Sequence[float] = getattr(self, self.kind)
        return given[0], given[1]

    @property
    def steps(self) -> tuple[float, ...]:
        """The values of ``quniform``, from its lower end on; the upper end is one of them if a step falls on it."""
        assert self.quniform is not None
        low, high, step = self.quniform
        count = math.floor((high - low) / step + _ROUNDING)
        return tuple(round(low + number * step, 12) for number in range(count + 1))

    @property
    def is_continuous(self) -> bool:
        """Whether every number between two ends is allowed."""
        return self.kind in ("uniform", "loguniform")

    @property
    def scale(self) -> Scale:
        """The axis that its values lie evenly on."""
        if self.values:
            return "choices"
        return "log" if self.loguniform is not None else "linear"

    def samples(self) -> tuple[Choice, ...]:
        """Return values that are allowed if all are: every choice, or the ends of a range."""
        return self.values or self.ends


def encode_value(value: object) -> str:
    """Write a value as a searcher that knows nothing but text can take it."""
    return json.dumps(value)


def decode_value(word: str) -> Choice:
    """Return the value that ``encode_value`` wrote."""
    value = json.loads(word)
    return tuple(value) if isinstance(value, list) else value


def with_settings(settings: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """Return nested settings with other values in some places.

    Args:
        settings: As a configuration file holds them; not changed.
        values: By dotted name. A number names an item of a list: ``cost_weight_range.0`` is the
            first of the cost weights.

    Raises:
        ConfigError: If a name leads through something that has no parts, or beyond a list's end.
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
    """Return the value that a dotted name leads to, see ``with_settings``.

    Raises:
        KeyError: If there is none.
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
