"""One gate for all budgets: what it is turned by, and what each position comes to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Dial:
    """What a gate for all budgets is turned by.

    A position lies in [0, 1]; 0 is where computation is dearest, so that little of it is used, 1 where most is. The gate sees the
    position beside everything else, and is trained at all of them.

    Attributes:
        computations: Mean computation in percent, everything included, that the trained gate came to on the validation split at
            evenly spaced positions from 0 to 1; empty before it was measured.

    Raises:
        ConfigError: If a figure is not positive, or there is one alone.
    """

    computations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.computations) == 1 or not all(0 < c < math.inf for c in self.computations):
            raise ConfigError(
                f"the dial's computations are {list(self.computations)}; needed are two positive figures or more, or none."
            )

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the most that images cost on average, in percent.

        Raises:
            ConfigError: If it was not measured.
        """
        measured = self._measured()
        return min(measured), max(measured)

    def position_within(self, budget: float) -> float:
        """Return the furthest position at which images cost no more than ``budget`` percent on average.

        Between the measured positions, the logarithm of the cost is taken to be linear.

        Raises:
            ConfigError: If all positions cost more, or none was measured.
        """
        least, most = self.reach
        if not budget >= least:
            raise ConfigError(
                f"budget {budget:g} % is less than this gate can be turned down to; its images cost {least:.6g} % to {most:.6g} % "
                "on average."
            )
        last = max(i for i, cost in enumerate(self.computations) if cost <= budget)
        steps = len(self.computations) - 1
        if last == steps:
            return 1.0
        before, after = self.computations[last], self.computations[last + 1]
        return (last + math.log(budget / before) / math.log(after / before)) / steps

    def computation_at(self, position: float) -> float:
        """Return what images cost at a position on average, in percent; between the measured ones as in ``position_within``.

        Raises:
            ConfigError: If none was measured.
        """
        measured = self._measured()
        place = position * (len(measured) - 1)
        last = min(int(place), len(measured) - 2)
        before, after = measured[last], measured[last + 1]
        return before * math.exp((place - last) * math.log(after / before))

    def _measured(self) -> tuple[float, ...]:
        if not self.computations:
            raise ConfigError("what this gate costs at which position was not measured.")
        return self.computations


@dataclass(frozen=True, kw_only=True)
class _Range:
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
                f"the {self._what} run from {self.lowest:g}{self._unit} to {self.highest:g}{self._unit}; they must be positive and "
                "finite, the lower one first."
            )


@dataclass(frozen=True, kw_only=True)
class PriceRange(_Range):
    """The cost weights that an agent learns along its dial: the highest at position 0."""

    _what = "cost weights"

    def weights(self, positions: Tensor) -> Tensor:
        """Return the cost weight at each position, in the positions' shape and type."""
        return self.highest * (self.lowest / self.highest) ** positions

    def position(self, weight: float) -> float:
        """Return where a cost weight lies.

        Raises:
            ConfigError: If it is out of range.
        """
        if not self.lowest <= weight <= self.highest:
            raise ConfigError(
                f"cost weight {weight:g} is not among those that the gate learns, {self.lowest:g} to {self.highest:g}."
            )
        return math.log(self.highest / weight) / math.log(self.highest / self.lowest)


@dataclass(frozen=True, kw_only=True)
class BudgetRange(_Range):
    """The mean computations in percent, everything included, that a supervised gate may learn along its dial: the lowest at 0."""

    _what = "budgets"
    _unit = " %"

    def budgets(self, positions: Tensor) -> Tensor:
        """Return the budget in percent at each position, in the positions' shape and type."""
        return self.lowest * (self.highest / self.lowest) ** positions


def even_positions(n: int) -> Tensor:
    """Return ``n`` positions that cover the dial evenly whatever their order is cut into, float32 ``[n]``.

    They are the fractional parts of multiples of the golden ratio: neighbours are far apart and every stretch of them is spread out,
    so images dealt out this way show every position to every class.
    """
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    return torch.from_numpy(np.mod((np.arange(n) + 0.5) * golden, 1.0)).float()


def measured_positions(n: int) -> Sequence[float]:
    """Return the positions that ``Dial.computations`` stand for."""
    return [i / (n - 1) for i in range(n)]
