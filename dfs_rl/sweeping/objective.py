"""Objectives of a sweep, from accuracy and computation on the val split only.

Rewards under different weights are not comparable, and a loss does not measure the saved
computation. Each objective is the mean over the last validations, because the maximum of many noisy
values is biased upward.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from dfs_rl.costs import BudgetUnit
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint, accuracy_at, hypervolume, pareto_front
from dfs_rl.utils.config import PositiveFloat, PositiveInt, configuration

_UNITS = {"hypervolume": " (% x decades)", "accuracy": " (%)", "computation": " (%)", "reward": ""}


@configuration
class ObjectiveConfig:
    """Objective of the search, measured on the val split.

    Attributes:
        name: hypervolume: area that the accuracies of a gate dominate, over the logarithm of
            computation; accuracy: highest accuracy at no more computation than ``budget``; reward:
            highest reward at reference weights, which all trials share; pareto_front: accuracy and
            computation together, for gates with one cost weight or budget each.
        budget: For accuracy: computation.
        budget_unit: Unit of ``budget``: percent, or ms with the cost latency; a sweep stores
            percent.
        cost_weight: For reward: weight of the computation, as a fraction of running everything at
            32 bit; a correct answer counts 1.
        reference_point: For hypervolume: computation in percent and accuracy in percent that bound
            the area; default: 10 %, and the accuracy of the lowest bit width in all layers.
        last: Number of last validations to average.
    """

    name: Literal["hypervolume", "accuracy", "reward", "pareto_front"] = "hypervolume"
    budget: PositiveFloat | None = None
    budget_unit: BudgetUnit = "percent"
    cost_weight: PositiveFloat | None = None
    reference_point: tuple[PositiveFloat, float] | None = None
    last: PositiveInt = 3

    def __post_init__(self) -> None:
        owners = {"budget": "accuracy", "cost_weight": "reward", "reference_point": "hypervolume"}
        for setting, owner in owners.items():
            value = getattr(self, setting)
            if value is not None and self.name != owner:
                raise ConfigError(f"{setting} is {value}, which is for {owner}; leave it out.")
            if value is None and self.name == owner != "hypervolume":
                raise ConfigError(f"{setting} is missing; {owner} needs it.")

    @property
    def modes(self) -> dict[str, Literal["max", "min"]]:
        """Direction of optimization of each value, by its name; the first one is maximized."""
        if self.name == "pareto_front":
            return {"accuracy": "max", "computation": "min"}
        return {self.name: "max"}

    @property
    def labels(self) -> dict[str, str]:
        """Names of the objective's values with their units, by name."""
        return {name: name + _UNITS[name] for name in self.modes}

    @property
    def failure_values(self) -> dict[str, float]:
        """Worst-case values that a failed trial reports."""
        if self.name == "pareto_front":
            return {"accuracy": 0.0, "computation": 1e6}
        return {self.name: 0.0 if self.name == "hypervolume" else -1e6}

    def description(self, reference_point: CurvePoint, cost_model: str) -> str:
        """Describe the objective in a sentence; ``reference_point`` bounds the hypervolume."""
        computation, accuracy = reference_point
        budget = "" if self.budget is None else f"{self.budget:g}"
        about = {
            "hypervolume": f"area under accuracy over the logarithm of {cost_model}, left of "
            f"{computation:g} % and above {accuracy:.1f} %",
            "accuracy": f"accuracy in percent at no more than {budget} % {cost_model}",
            "reward": f"correct answers minus {self.cost_weight} x {cost_model}, both as fractions",
            "pareto_front": f"accuracy and {cost_model} in percent, together",
        }
        return f"Objective: {about[self.name]}; mean of the last {self.last} validations on val."

    def values(self, points: Sequence[CurvePoint], reference_point: CurvePoint) -> dict[str, float]:
        """Return the objective's values for the operating points of one validation.

        ``reference_point`` bounds the hypervolume. A gate above the budget has a negative accuracy:
        -100 times the decades by which its cheapest point exceeds the budget.
        """
        if self.name == "pareto_front":
            return {"accuracy": points[-1].accuracy, "computation": points[-1].computation}
        if self.name == "hypervolume":
            return {self.name: hypervolume(points, reference_point=reference_point)}
        if self.name == "accuracy":
            assert self.budget is not None
            cheapest = min(point.computation for point in points)
            if cheapest > self.budget:
                return {self.name: -100.0 * math.log10(cheapest / self.budget)}
            reached = accuracy_at(points, self.budget)
            return {self.name: pareto_front(points)[-1].accuracy if reached is None else reached}
        assert self.cost_weight is not None
        return {
            self.name: max((p.accuracy - self.cost_weight * p.computation) / 100.0 for p in points)
        }

    def mean(self, several: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the means over several values, or over the penalties alone if there are any."""
        counted = [v for v in several if is_penalty(v)] or several
        return {name: statistics.fmean(v[name] for v in counted) for name in self.modes}


def is_penalty(values: Mapping[str, float]) -> bool:
    """Return whether the accuracy is a penalty for a gate above the budget.

    Searchers need a number for such a gate; reports must not show it.
    """
    return values.get("accuracy", 0.0) < 0.0
