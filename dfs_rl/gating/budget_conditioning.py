"""One gate for all budgets: what it is turned by, and what each position comes to."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dfs_rl.errors import ConfigError

MIN_PREFERENCE_GAP = 2.0**-12
"""Distance of two positions at which nothing is taken to lie between them."""


@dataclass(frozen=True, kw_only=True)
class BudgetConditioning:
    """What a gate for all budgets is turned by.

    A position lies in [0, 1]; 0 is where computation is dearest, so that little of it is used, 1
    where most is. The gate sees the position beside everything else, and is trained at all of them.

    Attributes:
        computations: Mean computation in percent, everything included, that the trained gate came
            to on the validation split at some positions; empty before it was measured.
        preferences: These positions, from 0 up to 1; by default evenly spaced.

    Raises:
        ConfigError: If a computation is not positive, or there is one alone, or positions do not go
            from 0 up to 1, one for each.
    """

    computations: tuple[float, ...] = ()
    preferences: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.computations) == 1 or not all(0 < c < math.inf for c in self.computations):
            raise ConfigError(
                f"the dial's computations are {list(self.computations)}; needed are two positive "
                "figures or more, or none."
            )
        if self.computations and not self.preferences:
            object.__setattr__(self, "preferences", preference_grid(len(self.computations)))
        ends = (0.0, 1.0) if self.computations else ()
        rising = all(a < b for a, b in pairwise(self.preferences))
        if (
            len(self.preferences) != len(self.computations)
            or not rising
            or self.preferences[:1] + self.preferences[-1:] != ends
        ):
            raise ConfigError(
                f"the dial's positions are {list(self.preferences)}; needed are "
                f"{len(self.computations)}, from 0 up to 1."
            )

    @property
    def budget_range(self) -> tuple[float, float]:
        """The least and the most that images cost on average, in percent.

        Raises:
            ConfigError: If it was not measured.
        """
        measured = self._measured()
        return min(measured), max(measured)

    def preference_for_budget(self, budget: float) -> float:
        """Return the furthest position at which images cost no more than ``budget`` percent on average.

        Between the measured positions, the logarithm of the cost is taken to be linear; between two
        that are next to each other, a gate that does the same to all images jumps, and what costs
        less is returned.

        Raises:
            ConfigError: If all positions cost more, or none was measured.
        """
        least, most = self.budget_range
        if not budget >= least:
            raise ConfigError(
                f"budget {budget:g} % is less than this gate can be turned down to; its images "
                f"cost {least:.6g} % to {most:.6g} % "
                "on average."
            )
        last = max(i for i, cost in enumerate(self.computations) if cost <= budget)
        if last == len(self.computations) - 1:
            return 1.0
        (before, after), (start, end) = self._segment(last)
        if end - start <= MIN_PREFERENCE_GAP:
            return start
        return start + (end - start) * math.log(budget / before) / math.log(after / before)

    def computation_at(self, preference: float) -> float:
        """Return what images cost at a position on average, in percent; between the measured ones as in ``preference_for_budget``.

        Raises:
            ConfigError: If none was measured.
        """
        self._measured()
        last = min(bisect_right(self.preferences, preference), len(self.preferences) - 1) - 1
        (before, after), (start, end) = self._segment(last)
        return before * math.exp((preference - start) / (end - start) * math.log(after / before))

    def _segment(self, first: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the computations, and the positions, of a measured position and the next one."""
        here, there = first, first + 1
        return (
            (self.computations[here], self.computations[there]),
            (self.preferences[here], self.preferences[there]),
        )

    def _measured(self) -> tuple[float, ...]:
        if not self.computations:
            raise ConfigError("what this gate costs at which position was not measured.")
        return self.computations


@dataclass(frozen=True, kw_only=True)
class _LogRange:
    """Two ends, and what lies between them evenly on a logarithmic axis.

    Attributes:
        lowest: Above 0.
        highest: Above ``lowest``.

    Raises:
        ConfigError: If the range is empty.
    """

    lowest: float
    highest: float
    _what: ClassVar[str]
    _unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ConfigError(
                f"the {self._what} run from {self.lowest:g}{self._unit} to "
                f"{self.highest:g}{self._unit}; they must be positive and "
                "finite, the lower one first."
            )


@dataclass(frozen=True, kw_only=True)
class CostWeightRange(_LogRange):
    """The cost weights that an agent learns along its dial: the highest at position 0."""

    _what = "cost weights"

    def at(self, preferences: Tensor) -> Tensor:
        """Return the cost weight at each position, in the positions' shape and type."""
        return self.highest * (self.lowest / self.highest) ** preferences

    def preference(self, weight: float) -> float:
        """Return where a cost weight lies.

        Raises:
            ConfigError: If it is out of range.
        """
        if not self.lowest <= weight <= self.highest:
            raise ConfigError(
                f"cost weight {weight:g} is not among those that the gate learns, {self.lowest:g} "
                f"to {self.highest:g}."
            )
        return math.log(self.highest / weight) / math.log(self.highest / self.lowest)


@dataclass(frozen=True, kw_only=True)
class BudgetRange(_LogRange):
    """The mean computations in percent, everything included, that a supervised gate may learn along its dial: the lowest at 0."""

    _what = "budgets"
    _unit = " %"

    def at(self, preferences: Tensor) -> Tensor:
        """Return the budget in percent at each position, in the positions' shape and type."""
        return self.lowest * (self.highest / self.lowest) ** preferences


def low_discrepancy_preferences(n: int) -> Tensor:
    """Return ``n`` positions that cover the dial evenly whatever their order is cut into, float32 ``[n]``.

    They are the fractional parts of multiples of the golden ratio: neighbours are far apart and
    every stretch of them is spread out, so images dealt out this way show every position to every
    class.
    """
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    return torch.from_numpy(np.mod((np.arange(n) + 0.5) * golden, 1.0)).float()


def preference_grid(n: int) -> tuple[float, ...]:
    """Return ``n`` evenly spaced positions from 0 to 1."""
    return tuple(i / (n - 1) for i in range(n))
