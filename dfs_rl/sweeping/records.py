"""What a sweep tried and what came of it.

No figure is ever NaN or infinite: a training that diverged has failed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import CurvePoint

DEFAULTS = "defaults"
"""Name of the settings that no sweep chose, where they are trained beside the best trials."""

TrialStatus = Literal["finished", "stopped", "failed", "unfinished"]
"""Whether a trial trained to its end, was stopped early by the scheduler, failed, or was never brought to an end."""

Setting = None | bool | int | float | str | tuple[object, ...]
"""Value of a searched setting."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord:
    """What a sweep looks for; all of it is measured on the val split.

    Attributes:
        names: One name, or two where accuracy and computation count together.
        maximize: For each name, whether the highest value is the best.
        units: For each name, such as ``%``; empty where it has none.
        about: What it means, in words, with units.

    Raises:
        ConfigError: If it is neither one nor two, or the other fields do not go with the names.
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
    """One configuration that was tried.

    Attributes:
        name: Its name, ``001`` and so on in the order of their beginning.
        settings: The searched settings by dotted name, as they were at the end.
        status: How it ended.
        reason: Why it failed; ``None`` otherwise.
        progress: Share of a whole training that it made, in [0, 1].
        values: The objective's values at its end by name, each the mean of its last evaluations;
            empty if it made none.
        history: ``(progress, value)`` of the first objective at every evaluation.
        points: What its training led to on val, as points of accuracy and computation: several for
            a gate with a dial or a supernet.
        seconds: How long it trained.

    Raises:
        ConfigError: If a figure is not finite, ``progress`` is not a share, a computation is not
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
    """A configuration that was trained again on fresh seeds, so that the luck in being chosen shows.

    Attributes:
        name: Name of the trial that it comes from, or ``defaults``.
        settings: Its searched settings by dotted name.
        search_values: The objective's values that it was chosen by; empty for the defaults.
        seeds: The fresh seeds, those that failed left out.
        values: The objective's values by name, one for each of ``seeds``.
        points: What each training led to on val, in the order of ``seeds``.
        failed: Reasons of failed trainings by seed.

    Raises:
        ConfigError: If a figure is not finite, a computation is not positive, or values or points
            do not go with the seeds.
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
    """A sweep as a whole.

    Attributes:
        title: Its name, and the data set's.
        about: One line: command, number of val images, searcher, scheduler.
        objective: What it looks for.
        scales: For each searched setting, whether it was drawn on a ``linear`` or ``log`` axis or
            is one of some ``choices``.
        trials: All of them, in the order of their beginning.
        best: Names of the best trials, the best one first; with two objectives those that no other
            one beats in both.
        retrained: The best ones again, and the defaults.
        importance: Share of the first objective's variation that each searched setting explains, by
            dotted name, in [0, 1]; empty if it cannot be told.
        reference_point: The corner that areas end at.
        commands: How to go on from here: train the best configuration, repeat the sweep.
        settings: The sweep file as it was resolved, as YAML.
        seconds: Wall time.

    Raises:
        ConfigError: If trials share a name, the best ones are not among them or lack a value, those
            on fresh seeds lack one, a setting has no scale, or one on a ``log`` axis is no positive
            number.
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
        """Return the trial of this name."""
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
