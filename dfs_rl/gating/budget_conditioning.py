"""Budget conditioning: one gate for all budgets, with a preference in [0, 1] as an input."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config import NonNegativeFloat, PositiveFloat, configuration

MIN_PREFERENCE_GAP = 2.0**-12
"""Distance of two preferences below which no interpolation takes place."""
_ROUNDING = 1e-9
"""Rounding tolerance for differences of accuracies in points."""


@configuration
class BudgetConditioning:
    """Measured costs and accuracies of a budget-conditioned gate.

    A preference lies in [0, 1]: 0 has the largest cost weight and the least computation, 1 the most
    computation. The gate receives the preference as an input and is trained at all of them.

    Attributes:
        computations: Mean computation of the trained gate in percent, everything included, on the
            validation split at each preference; empty before the measurement.
        preferences: Measured preferences, increasing from 0 to 1; evenly spaced by default.
        accuracies: Accuracy in percent at each preference, on the same images; may be empty.
        full_precision_accuracy: Accuracy in percent of the backbone with all layers at the largest
            bits, on the same images; given with ``accuracies``.

    Raises:
        ConfigError: If a value is invalid, or their numbers differ.
    """

    computations: tuple[PositiveFloat, ...] = ()
    preferences: tuple[float, ...] = ()
    accuracies: tuple[NonNegativeFloat, ...] = ()
    full_precision_accuracy: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        n = len(self.computations)
        if n == 1:
            raise ConfigError(
                f"computations are {list(self.computations)}; needed are two or more, or none."
            )
        if n and not self.preferences:
            object.__setattr__(self, "preferences", preference_grid(n))
        ends = (0.0, 1.0) if n else ()
        rising = all(a < b for a, b in pairwise(self.preferences))
        found = self.preferences[:1] + self.preferences[-1:]
        if not (len(self.preferences) == n and rising and found == ends):
            raise ConfigError(
                f"preferences are {list(self.preferences)}; needed are {n}, increasing from 0 to 1."
            )
        has_full = self.full_precision_accuracy is not None
        if len(self.accuracies) != (n if has_full else 0) or (has_full and not n):
            raise ConfigError(
                f"accuracies are {list(self.accuracies)} and full_precision_accuracy is "
                f"{self.full_precision_accuracy}; needed are {n} with the latter, or neither."
            )

    @property
    def budget_range(self) -> tuple[float, float]:
        """Smallest and largest mean computation per image, in percent.

        Raises:
            ConfigError: If nothing was measured.
        """
        if not self.computations:
            raise ConfigError(
                "the costs of this gate were not measured yet, as the end of a training does."
            )
        return min(self.computations), max(self.computations)

    @property
    def rounded_range(self) -> tuple[float, float]:
        """``budget_range`` rounded up to four decimals: printed bounds are valid budgets."""
        least, most = self.budget_range
        return math.ceil(1e4 * least) / 1e4, math.ceil(1e4 * most) / 1e4

    def check_not_above(
        self, budget: float, in_words: Callable[[float], str] = "{:.6g} %".format
    ) -> None:
        """Raise ConfigError for a budget above the largest cost, which it would not spend.

        ``in_words`` is as in ``preference_for_budget``.
        """
        if budget > self.rounded_range[1]:
            raise self._out_of_range(budget, in_words)

    def _out_of_range(self, budget: float, in_words: Callable[[float], str]) -> ConfigError:
        least, most = self.rounded_range
        return ConfigError(
            f"budget is {in_words(budget)}, but the images of this gate cost {in_words(least)} to "
            f"{in_words(most)} on average; give a budget in this range."
        )

    @property
    def smallest_accuracy_drop(self) -> float:
        """Smallest loss of accuracy against full precision, in points; negative for a gain.

        Raises:
            ConfigError: If nothing was measured.
        """
        if self.full_precision_accuracy is None:
            raise ConfigError(
                "the accuracies of this gate were not measured yet, as the end of a training does."
            )
        return self.full_precision_accuracy - max(self.accuracies)

    def preference_for_accuracy_drop(self, drop: float) -> float:
        """Return the cheapest measured preference that loses at most ``drop`` points of accuracy.

        The loss is that against full precision, on the images of the measurement.

        Raises:
            ConfigError: If no preference loses so little, or nothing was measured.
        """
        smallest = self.smallest_accuracy_drop
        if not drop >= smallest - _ROUNDING:
            raise ConfigError(
                f"max_accuracy_drop is {drop:g}, but the smallest drop of this gate against full "
                f"precision is {math.ceil(1e4 * smallest) / 1e4:g} points, on the val split."
            )
        lowest = max(self.accuracies) - (drop - smallest) - _ROUNDING
        measured = zip(self.computations, self.accuracies, self.preferences, strict=True)
        found = [(cost, -accuracy, at) for cost, accuracy, at in measured if accuracy >= lowest]
        _, _, preference = min(found)
        return preference

    def preference_for_budget(
        self, budget: float, in_words: Callable[[float], str] = "{:.6g} %".format
    ) -> float:
        """Return the largest preference with a mean computation of at most ``budget`` percent.

        The logarithm of the cost is interpolated linearly between measured preferences. Between two
        preferences within ``MIN_PREFERENCE_GAP`` the cost of the gate jumps, and the cheaper one is
        returned. ``in_words`` gives the text of a cost in percent, for the error.

        Raises:
            ConfigError: If the budget is below the smallest cost, or nothing was measured.
        """
        if not budget >= self.budget_range[0]:
            raise self._out_of_range(budget, in_words)
        last = max(i for i, cost in enumerate(self.computations) if cost <= budget)
        if last == len(self.computations) - 1:
            return 1.0
        before, after = self.computations[last : last + 2]
        start, end = self.preferences[last : last + 2]
        if end - start <= MIN_PREFERENCE_GAP:
            return start
        return start + (end - start) * math.log(budget / before) / math.log(after / before)

    def computation_at(self, preference: float) -> float:
        """Return the mean computation per image at a preference in percent, interpolated likewise.

        There must be measured costs.
        """
        last = min(bisect_right(self.preferences, preference), len(self.preferences) - 1) - 1
        before, after = self.computations[last : last + 2]
        start, end = self.preferences[last : last + 2]
        return before * math.exp((preference - start) / (end - start) * math.log(after / before))


@dataclass(frozen=True, kw_only=True)
class _LogRange:
    """Range on a logarithmic axis, with 0 < ``lowest`` < ``highest``."""

    lowest: float
    highest: float
    _name: ClassVar[str]
    _unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ConfigError(
                f"the {self._name} run from {self.lowest:g}{self._unit} to "
                f"{self.highest:g}{self._unit}; they must be positive and finite, the lower one "
                "first."
            )


class CostWeightRange(_LogRange):
    """Cost weights of a budget-conditioned agent; preference 0 has the highest."""

    _name = "cost weights"

    def at(self, preferences: Tensor) -> Tensor:
        """Return the cost weight at each preference, in the shape and type of ``preferences``."""
        return self.highest * (self.lowest / self.highest) ** preferences

    def preference(self, weight: float) -> float:
        """Return the preference of a cost weight.

        Raises:
            ConfigError: If the cost weight is out of range.
        """
        if not self.lowest <= weight <= self.highest:
            raise ConfigError(
                f"cost_weight is {weight:g}; allowed are those that the gate learns, "
                f"{self.lowest:g} to {self.highest:g}."
            )
        return math.log(self.highest / weight) / math.log(self.highest / self.lowest)


class BudgetRange(_LogRange):
    """Mean budgets of a budget-conditioned supervised gate, in percent, everything included.

    Preference 0 has the lowest budget.
    """

    _name = "budgets"
    _unit = " %"

    def at(self, preferences: Tensor) -> Tensor:
        """Return the budget in percent at each preference, in the shape of ``preferences``."""
        return self.lowest * (self.highest / self.lowest) ** preferences


def low_discrepancy_preferences(n: int) -> Tensor:
    """Return ``n`` preferences that cover [0, 1] evenly in every stretch, float32 ``[n]``.

    They are the fractional parts of multiples of the golden ratio: neighbours are far apart and
    every stretch is spread out, so images of every class receive preferences from all of [0, 1].
    """
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    return torch.from_numpy(np.mod((np.arange(n) + 0.5) * golden, 1.0)).float()


def preference_grid(n: int) -> tuple[float, ...]:
    """Return ``n`` evenly spaced preferences from 0 to 1."""
    return tuple(i / (n - 1) for i in range(n))
