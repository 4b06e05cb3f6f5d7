"""Records of a sweep's trials and results.

All figures are finite: a training that diverged counts as failed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint

DEFAULTS = "defaults"
"""Name of the default settings among the retrained configurations."""

TrialStatus = Literal["finished", "stopped", "failed", "unfinished"]
"""Final state of a trial.

``stopped`` trials were ended by the scheduler, ``unfinished`` ones neither ended nor failed.
"""

Setting = None | bool | int | float | str | tuple[object, ...]
"""Value of a searched setting."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord:
    """Objective of a sweep, measured on the val split.

    Attributes:
        names: One name, or two if accuracy and computation count together.
        maximize: For each name, whether the highest value is the best.
        units: For each name, such as ``%``; empty for values without a unit.
        about: Description in words, with units.

    Raises:
        ConfigError: If there are neither one nor two names, or the other fields do not match them.
    """

    names: tuple[str, ...]
    maximize: tuple[bool, ...]
    units: tuple[str, ...]
    about: str

    def __post_init__(self) -> None:
        if len(self.names) not in (1, 2) or len(set(self.names)) != len(self.names):
            raise ConfigError(f"names of an objective is {self.names}; one or two are needed.")
        for field in ("maximize", "units"):
            value = getattr(self, field)
            if len(value) != len(self.names):
                raise ConfigError(
                    f"{field} of the objective is {value}; {len(self.names)} are needed, one for "
                    f"each of {self.names}."
                )


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Result of one trial.

    Attributes:
        name: Name of the trial: ``001`` and so on, in the order of their creation.
        settings: Searched settings at the end of the trial, by dotted name.
        status: Final state.
        reason: Reason of the failure; ``None`` otherwise.
        progress: Completed fraction of a training, in [0, 1].
        values: Final values of the objective by name, each the mean over the last evaluations;
            empty without evaluations.
        history: ``(progress, value)`` of the first objective at every evaluation.
        points: Accuracy and computation on val of the final result; several points for a
            budget-conditioned gate or a supernet.
        seconds: Training time.

    Raises:
        ConfigError: If a figure is not finite, ``progress`` is outside [0, 1], a computation is not
            positive, or there is a reason without a failure or a failure without a reason.
    """

    name: str
    settings: Mapping[str, Setting]
    status: TrialStatus
    reason: str | None
    progress: float
    values: Mapping[str, float]
    history: tuple[tuple[float, float], ...]
    points: tuple[CurvePoint, ...]
    seconds: float

    def __post_init__(self) -> None:
        whose = f"trial {self.name}"
        if (self.status == "failed") != (self.reason is not None):
            raise ConfigError(
                f"{whose} is {self.status} and its reason is {self.reason!r}; failed trials have "
                "one, others none."
            )
        if not 0 <= self.progress <= 1:
            raise ConfigError(
                f"progress of {whose} is {self.progress}; allowed is a share of a training, 0 to 1."
            )
        _check_finite(f"values of {whose}", self.values.values())
        _check_finite(f"history of {whose}", (v for pair in self.history for v in pair))
        _check_finite(f"seconds of {whose}", [self.seconds])
        _check_points(whose, self.points)


@dataclass(frozen=True, kw_only=True)
class RetrainedRecord:
    """A configuration retrained on fresh seeds, to measure the selection bias of the search.

    Attributes:
        name: Name of the original trial, or ``defaults``.
        settings: Searched settings by dotted name.
        search_values: Values of the objective in the search; empty for the defaults.
        seeds: Fresh seeds, without those that failed.
        values: Values of the objective by name, one for each of ``seeds``.
        points: Accuracy and computation on val of each training, in the order of ``seeds``.
        failed: Reasons of failed trainings by seed.

    Raises:
        ConfigError: If a figure is not finite, a computation is not positive, or values or points
            do not match the seeds.
    """

    name: str
    settings: Mapping[str, Setting]
    search_values: Mapping[str, float]
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    points: tuple[tuple[CurvePoint, ...], ...]
    failed: Mapping[int, str]

    def __post_init__(self) -> None:
        whose = f"{self.name} on fresh seeds"
        for name, values in {**self.values, "points": self.points}.items():
            if len(values) != len(self.seeds):
                raise ConfigError(
                    f"{name} of {whose} has {len(values)} entries; {len(self.seeds)} are needed, "
                    f"one for each of the seeds {self.seeds}."
                )
        _check_finite(f"own values of {whose}", self.search_values.values())
        _check_finite(f"values of {whose}", (v for values in self.values.values() for v in values))
        for points in self.points:
            _check_points(whose, points)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Result of a whole sweep.

    Attributes:
        title: Name of the sweep and of its data set.
        about: One line: command, number of val images, searcher, scheduler.
        objective: Objective of the search.
        scales: For each searched setting, the axis of its values: ``linear``, ``log`` or
            ``choices``.
        trials: All trials, in the order of their creation.
        best: Names of the best trials, the best one first; with two objectives the non-dominated
            trials.
        retrained: Best trials and defaults, retrained on fresh seeds.
        importance: Fraction of the first objective's variance that each searched setting explains,
            by dotted name, in [0, 1]; empty if it cannot be estimated.
        reference_point: Bound of the hypervolume.
        commands: Command lines that train the best configuration and repeat the sweep.
        settings: Resolved sweep file, as YAML.
        seconds: Wall time.

    Raises:
        ConfigError: If two trials have the same name, a best trial is unknown or lacks a value, a
            retrained one lacks a value, a setting has no scale, or a value on a ``log`` axis is not
            a positive number.
    """

    title: str
    about: str
    objective: ObjectiveRecord
    scales: Mapping[str, Literal["linear", "log", "choices"]]
    trials: tuple[TrialRecord, ...]
    best: tuple[str, ...]
    retrained: tuple[RetrainedRecord, ...]
    importance: Mapping[str, float]
    reference_point: CurvePoint
    commands: tuple[str, ...]
    settings: str
    seconds: float

    def __post_init__(self) -> None:
        trials = {trial.name: trial for trial in self.trials}
        if len(trials) != len(self.trials):
            raise ConfigError("two trials of the sweep have the same name; each needs its own.")
        for name in self.best:
            if name not in trials or set(trials[name].values) != set(self.objective.names):
                raise ConfigError(
                    f"best has {name!r}; allowed are trials with values of "
                    f"{', '.join(self.objective.names)}."
                )
        for again in self.retrained:
            if again.seeds and set(again.values) != set(self.objective.names):
                raise ConfigError(
                    f"{again.name} on fresh seeds has values of {tuple(again.values)}; needed are "
                    f"{self.objective.names}."
                )
        for trial in self.trials:
            for name, value in trial.settings.items():
                if name not in self.scales:
                    raise ConfigError(
                        f"scales has no {name!r}, which trial {trial.name} sets; every searched "
                        "setting needs one."
                    )
                positive = isinstance(value, int | float) and value > 0
                if self.scales[name] == "log" and not positive:
                    raise ConfigError(
                        f"{name} of trial {trial.name} is {value!r}; on a log axis it must be a "
                        "positive number."
                    )

    @property
    def points(self) -> list[CurvePoint]:
        """Points of all trials."""
        return [point for trial in self.trials for point in trial.points]

    def trial(self, name: str) -> TrialRecord:
        """Return the trial with this name."""
        return next(trial for trial in self.trials if trial.name == name)


def _check_finite(what: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ConfigError(f"{what} has {value}; every figure of a sweep must be finite.")


def _check_points(whose: str, points: Sequence[CurvePoint]) -> None:
    _check_finite(f"points of {whose}", (value for point in points for value in point))
    for point in points:
        if point.computation <= 0:
            raise ConfigError(
                f"points of {whose} has a computation of {point.computation}; it must be positive."
            )
