"""Axes for settings with numbers or other values: coordinates and tick labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from dfs_rl.evaluation.number_format import setting_text
from dfs_rl.sweeping.records import Setting, SweepRecord

_ROOM = 0.5
"""Coordinate of the only value on an axis."""
_TWO_DECADES = 2.0


class SettingAxis(NamedTuple):
    """Axis of one setting; coordinates are fractions of its length, in [0, 1].

    Attributes:
        name: Dotted name of the setting.
        log: Whether the axis is logarithmic.
        low: Lower end, a logarithm to base 10 if ``log``.
        high: Upper end, a logarithm to base 10 if ``log``.
        choices: Values as text, from the lower end; empty for numbers.
    """

    name: str
    log: bool
    low: float
    high: float
    choices: tuple[str, ...]

    def place(self, value: Setting) -> float | None:
        """Return the coordinate of a value, None if the value is not on this axis."""
        if self.choices:
            text = setting_text(value)
            return self._share(self.choices.index(text)) if text in self.choices else None
        if not _is_number(value) or (self.log and value <= 0):
            return None
        share = self._share(math.log10(value) if self.log else float(value))
        return share if 0 <= share <= 1 else None

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Return coordinates and labels of the ticks; for numbers about ``most`` at most."""
        if self.choices:
            return [(self._share(i), text) for i, text in enumerate(self.choices)]
        values = self._round_values(most)
        return [(self._share(value), _plain(10**value if self.log else value)) for value in values]

    def _share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) if self.high > self.low else _ROOM

    def _round_values(self, most: int) -> list[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.low == self.high:
            return [self.low]
        if not self.log:
            found = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(
                self.low, self.high
            )
        elif self.high - self.low >= _TWO_DECADES:
            found = MaxNLocator(nbins=most, integer=True).tick_values(self.low, self.high)
        else:
            located = LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(10**self.low, 10**self.high)
            found = [math.log10(value) for value in located]
        within = [float(value) for value in found if self.low <= value <= self.high]
        return within if len(within) > 1 else [self.low, self.high]


def setting_axis(record: SweepRecord, name: str, also: Sequence[Setting] = ()) -> SettingAxis:
    """Return the axis of one setting, which covers the values of all trials.

    Args:
        record: The sweep.
        name: Name of the setting.
        also: Further values to cover, if they fit the axis.
    """
    scale = record.scales[name]
    tried = [trial.settings[name] for trial in record.trials if name in trial.settings]
    if scale == "choices" or not all(_is_number(value) for value in tried):
        texts = dict.fromkeys(map(setting_text, sorted([*tried, *also], key=_rank)))
        return SettingAxis(
            name, log=False, low=0.0, high=float(len(texts) - 1), choices=tuple(texts)
        )
    log = scale == "log"
    numbers = [float(v) for v in (*tried, *also) if _is_number(v) and (v > 0 or not log)]
    return number_axis(name, [math.log10(v) if log else v for v in numbers] or [0.0], log=log)


def number_axis(name: str, values: Sequence[float], *, log: bool = False) -> SettingAxis:
    """Return an axis that covers ``values``, which are logarithms if ``log``."""
    return SettingAxis(name, log=log, low=min(values), high=max(values), choices=())


def _is_number(value: Setting) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rank(value: Setting) -> tuple[int, float, str]:
    """Return the sort key of a choice: None, numbers by size, lists by length, text by name."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    if isinstance(value, tuple):
        return (2, float(len(value)), setting_text(value))
    return (3, 0.0, setting_text(value))


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
