"""What a sweep looks for, as a function of what validations show: never of a training loss or of a training reward.

Rewards under different weights are not comparable, and a loss says nothing of what computation was saved. So an objective is made
of accuracy and computation on the val split alone, and it is the mean over the last validations, for the best of many noisy
figures is a lucky one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint, accuracy_at, hypervolume, staircase
from dfs_rl.sweeping.records import ObjectiveRecord
from dfs_rl.utils.config import Count, Positive, configuration

ObjectiveName = Literal["hypervolume", "accuracy", "reward", "frontier"]
_UNITS = {"hypervolume": "% x decades", "accuracy": "%", "computation": "%", "reward": ""}
_FORBIDDEN = ("loss", "train", "rollout", "episode_reward", "return")
"""What names of training figures contain."""


@configuration
class ObjectiveConfig:
    """What to look for on the val split.

    Attributes:
        name: hypervolume: the area that the accuracies of a gate dominate, over the logarithm of computation; accuracy: the highest
            at no more computation than ``cap``; reward: the highest at reference weights, which all trials share; frontier: accuracy
            and computation together, for gates of one price or budget each.
        cap: For accuracy: computation in percent.
        cost: For reward: price of computation, 1 being that of running everything at 32 bit; a correct answer is worth 1.
        corner: For hypervolume: the computation in percent and the accuracy in percent where the area ends; by default 10 %, and the
            accuracy of the lowest bit width everywhere.
        last: How many of the last validations count, by their mean.

    Raises:
        ConfigError: If a value is out of range, or is for another objective.
    """

    name: ObjectiveName = "hypervolume"
    cap: Positive | None = None
    cost: Positive | None = None
    corner: tuple[Positive, float] | None = None
    last: Count = 3

    def __post_init__(self) -> None:
        for setting, owner in (("cap", "accuracy"), ("cost", "reward")):
            value = getattr(self, setting)
            if self.name == owner and value is None:
                raise ConfigError(f"{setting} is missing; {owner} needs it.")
            if self.name != owner and value is not None:
                raise ConfigError(f"{setting} is {value:g}, which is for {owner}; leave it out.")
        if self.corner is not None and self.name != "hypervolume":
            raise ConfigError(f"corner is {self.corner}, which is for hypervolume; leave it out.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its values; the first is the highest at best."""
        return ("accuracy", "computation") if self.name == "frontier" else (self.name,)

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """Whether the highest or the lowest of each value is the best."""
        return ("max", "min") if self.name == "frontier" else ("max",)

    @property
    def worst(self) -> dict[str, float]:
        """What a failed trial is worth: less than any that did not fail."""
        floor = {"hypervolume": 0.0, "accuracy": -1e6, "reward": -1e6}
        if self.name == "frontier":
            return {"accuracy": 0.0, "computation": 1e6}
        return {self.name: floor[self.name]}

    def record(self, corner: CurvePoint) -> ObjectiveRecord:
        """Describe it; ``corner`` is where areas end."""
        about = {
            "hypervolume": "Area under accuracy over the logarithm of computation, percent x decades, left of "
            f"{corner.computation:g} % and above {corner.accuracy:.1f} %",
            "accuracy": f"Accuracy in percent at no more than {self.cap} % computation",
            "reward": f"Correct answers minus {self.cost} x computation, both as fractions",
            "frontier": "Accuracy and computation in percent, together",
        }
        return ObjectiveRecord(
            names=self.names,
            units=tuple(_UNITS[name] for name in self.names),
            highest=tuple(mode == "max" for mode in self.modes),
            about=f"{about[self.name]}; on val, mean of the last {self.last} validations.",
        )

    def values(self, points: Sequence[CurvePoint], corner: CurvePoint) -> dict[str, float]:
        """Return what one validation is worth.

        Args:
            points: What it showed.
            corner: Where areas end.
        """
        if self.name == "frontier":
            return {"accuracy": points[-1].accuracy, "computation": points[-1].computation}
        if self.name == "hypervolume":
            return {self.name: hypervolume(points, worst=corner)}
        if self.name == "accuracy":
            assert self.cap is not None
            return {self.name: _accuracy_within(points, self.cap)}
        assert self.cost is not None
        return {self.name: max((p.accuracy - self.cost * p.computation) / 100.0 for p in points)}

    def mean_of_last(self, validations: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the means over the last validations, of which there is at least one."""
        return self.mean(validations[-self.last :])

    def mean(self, several: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the means over several values, penalties apart: if there are any, only they count."""
        counted = [v for v in several if is_penalty(v)] or several
        return {name: statistics.fmean(v[name] for v in counted) for name in self.names}


def is_penalty(values: Mapping[str, float]) -> bool:
    """Return whether an accuracy stands for a gate above the cap: searchers need a number, reports must not show it."""
    return values.get("accuracy", 0.0) < 0.0


def _accuracy_within(points: Sequence[CurvePoint], cap: float) -> float:
    """Return the highest accuracy at no more than ``cap`` percent; below 0, how far the cheapest point lies above it."""
    cheapest = min(point.computation for point in points)
    if cheapest > cap:
        return -100.0 * math.log10(cheapest / cap)
    reached = accuracy_at(points, cap)
    return staircase(points)[-1].accuracy if reached is None else reached


def check_is_no_training_figure(name: object) -> None:
    """Refuse what training itself goes by.

    Raises:
        ConfigError: If ``name`` is that of a loss or of a training reward.
    """
    if isinstance(name, str) and any(word in name.lower() for word in _FORBIDDEN):
        raise ConfigError(
            f"objective.name is {name!r}; a training loss or training reward cannot be searched by, for trials with other reward weights "
            "are paid otherwise; allowed are hypervolume, accuracy, reward (at reference weights) and frontier."
        )
