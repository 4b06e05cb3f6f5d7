"""What a sweep looks for, as a function of what validations show: never of a training loss or of a training reward.

Rewards under different weights are not comparable, and a loss says nothing of what computation was
saved. So an objective is made of accuracy and computation on the val split alone, and it is the
mean over the last validations, for the best of many noisy figures is a lucky one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint, accuracy_at, hypervolume, pareto_front
from dfs_rl.sweeping.records import ObjectiveRecord
from dfs_rl.utils.config import PositiveFloat, PositiveInt, configuration

ObjectiveName = Literal["hypervolume", "accuracy", "reward", "pareto_front"]
_UNITS = {"hypervolume": "% x decades", "accuracy": "%", "computation": "%", "reward": ""}
_FORBIDDEN = ("loss", "train", "rollout", "episode_reward", "return")
"""What names of training figures contain."""


@configuration
class ObjectiveConfig:
    """What to look for on the val split.

    Attributes:
        name: hypervolume: the area that the accuracies of a gate dominate, over the logarithm of
            computation; accuracy: the highest at no more computation than ``budget``; reward: the
            highest at reference weights, which all trials share; pareto_front: accuracy and
            computation together, for gates of one price or budget each.
        budget: For accuracy: computation in percent.
        cost_weight: For reward: price of computation, 1 being that of running everything at 32 bit;
            a correct answer is worth 1.
        reference_point: For hypervolume: the computation in percent and the accuracy in percent
            where the area ends; by default 10 %, and the accuracy of the lowest bit width
            everywhere.
        last: How many of the last validations count, by their mean.

    Raises:
        ConfigError: If a value is out of range, or is for another objective.
    """

    name: ObjectiveName = "hypervolume"
    budget: PositiveFloat | None = None
    cost_weight: PositiveFloat | None = None
    reference_point: tuple[PositiveFloat, float] | None = None
    last: PositiveInt = 3

    def __post_init__(self) -> None:
        for setting, owner in (("budget", "accuracy"), ("cost_weight", "reward")):
            value = getattr(self, setting)
            if self.name == owner and value is None:
                raise ConfigError(f"{setting} is missing; {owner} needs it.")
            if self.name != owner and value is not None:
                raise ConfigError(f"{setting} is {value:g}, which is for {owner}; leave it out.")
        if self.reference_point is not None and self.name != "hypervolume":
            raise ConfigError(
                f"reference_point is {self.reference_point}, which is for hypervolume; leave it out."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its values; the first is the highest at best."""
        return ("accuracy", "computation") if self.name == "pareto_front" else (self.name,)

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """Whether the highest or the lowest of each value is the best."""
        return ("max", "min") if self.name == "pareto_front" else ("max",)

    @property
    def failure_values(self) -> dict[str, float]:
        """What a failed trial is worth: less than any that did not fail."""
        floor = {"hypervolume": 0.0, "accuracy": -1e6, "reward": -1e6}
        if self.name == "pareto_front":
            return {"accuracy": 0.0, "computation": 1e6}
        return {self.name: floor[self.name]}

    def record(self, reference_point: CurvePoint) -> ObjectiveRecord:
        """Describe it; ``reference_point`` is where areas end."""
        about = {
            "hypervolume": "Area under accuracy over the logarithm of computation, percent x decades, left of "
            f"{reference_point.computation:g} % and above {reference_point.accuracy:.1f} %",
            "accuracy": f"Accuracy in percent at no more than {self.budget} % computation",
            "reward": f"Correct answers minus {self.cost_weight} x computation, both as fractions",
            "pareto_front": "Accuracy and computation in percent, together",
        }
        return ObjectiveRecord(
            names=self.names,
            units=tuple(_UNITS[name] for name in self.names),
            maximize=tuple(mode == "max" for mode in self.modes),
            about=f"{about[self.name]}; on val, mean of the last {self.last} validations.",
        )

    def values(self, points: Sequence[CurvePoint], reference_point: CurvePoint) -> dict[str, float]:
        """Return what one validation is worth.

        Args:
            points: What it showed.
            reference_point: Where areas end.
        """
        if self.name == "pareto_front":
            return {"accuracy": points[-1].accuracy, "computation": points[-1].computation}
        if self.name == "hypervolume":
            return {self.name: hypervolume(points, reference_point=reference_point)}
        if self.name == "accuracy":
            assert self.budget is not None
            return {self.name: _accuracy_within(points, self.budget)}
        assert self.cost_weight is not None
        return {
            self.name: max((p.accuracy - self.cost_weight * p.computation) / 100.0 for p in points)
        }

    def mean_of_last(self, validations: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the means over the last validations, of which there is at least one."""
        return self.mean(validations[-self.last :])

    def mean(self, several: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the means over several values, penalties apart: if there are any, only they count."""
        counted = [v for v in several if is_penalty(v)] or several
        return {name: statistics.fmean(v[name] for v in counted) for name in self.names}


def is_penalty(values: Mapping[str, float]) -> bool:
    """Return whether an accuracy stands for a gate above the budget: searchers need a number, reports must not show it."""
    return values.get("accuracy", 0.0) < 0.0


def _accuracy_within(points: Sequence[CurvePoint], budget: float) -> float:
    """Return the highest accuracy at no more than ``budget`` percent; below 0, how far the cheapest point lies above it."""
    cheapest = min(point.computation for point in points)
    if cheapest > budget:
        return -100.0 * math.log10(cheapest / budget)
    reached = accuracy_at(points, budget)
    return pareto_front(points)[-1].accuracy if reached is None else reached


def check_is_no_training_metric(name: object) -> None:
    """Refuse what training itself goes by.

    Raises:
        ConfigError: If ``name`` is that of a loss or of a training reward.
    """
    if isinstance(name, str) and any(word in name.lower() for word in _FORBIDDEN):
        raise ConfigError(
            f"objective.name is {name!r}; a training loss or training reward cannot be searched "
            "by, for trials with other reward weights "
            "are paid otherwise; allowed are hypervolume, accuracy, reward (at reference weights) "
            "and pareto_front."
        )
