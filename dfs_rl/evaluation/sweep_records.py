"""What a sweep tried and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dfs_rl.evaluation.curves import CurvePoint

TrialStatus = Literal["finished", "stopped", "failed", "unfinished"]
"""Whether a trial trained to its end, was stopped early by the scheduler, failed, or was never brought to an end."""

Setting = None | bool | int | float | str | tuple[object, ...]
"""Value of a searched setting."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord:
    """What a sweep looks for; all of it is measured on the val split.

    Attributes:
        names: One name, or two where accuracy and computation count together.
        highest: For each name, whether the highest value is the best.
        about: What it means, in words, with units.
    """

    names: tuple[str, ...]
    highest: tuple[bool, ...]
    about: str


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One configuration that was tried.

    Attributes:
        name: Its name, ``001`` and so on in the order of their beginning.
        settings: The searched settings by dotted name, as they were at the end.
        status: How it ended.
        reason: Why it failed; ``None`` otherwise.
        progress: Share of a whole training that it made, in [0, 1].
        values: The objective's values at its end by name, each the mean of its last evaluations; empty if it made none.
        history: ``(progress, value)`` of the first objective at every evaluation.
        points: What its training led to on val, as points of accuracy and computation: several for a gate with a dial or a supernet.
        seconds: How long it trained.
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


@dataclass(frozen=True, kw_only=True)
class RetrainedRecord:
    """A configuration that was trained again on fresh seeds, so that the luck in being chosen shows.

    Attributes:
        name: Name of the trial that it comes from, or ``defaults``.
        settings: Its searched settings by dotted name.
        own: The objective's values that it was chosen by; empty for the defaults.
        seeds: The fresh seeds, those that failed left out.
        values: The objective's values by name, one for each of ``seeds``.
        points: What each training led to on val, in the order of ``seeds``.
        failed: Reasons of failed trainings by seed.
    """

    name: str
    settings: Mapping[str, Setting]
    own: Mapping[str, float]
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    points: tuple[tuple[CurvePoint, ...], ...]
    failed: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep as a whole.

    Attributes:
        title: Its name, and the data set's.
        about: One line: command, number of val images, searcher, scheduler.
        objective: What it looks for.
        scales: For each searched setting, whether it was drawn on a ``linear`` or ``log`` axis or is one of some ``choices``.
        trials: All of them, in the order of their beginning.
        best: Names of the best trials, the best one first; with two objectives those that no other one beats in both.
        retrained: The best ones again, and the defaults.
        importance: Share of the objective's variation that each searched setting explains, by dotted name, in [0, 1]; empty if it
            cannot be told.
        worst: The corner that areas end at.
        commands: How to go on from here: train the best configuration, repeat the sweep.
        settings: The sweep file as it was resolved, as YAML.
        seconds: Wall time.
    """

    title: str
    about: str
    objective: ObjectiveRecord
    scales: Mapping[str, Literal["linear", "log", "choices"]]
    trials: tuple[TrialRecord, ...]
    best: tuple[str, ...]
    retrained: tuple[RetrainedRecord, ...]
    importance: Mapping[str, float]
    worst: CurvePoint
    commands: tuple[str, ...]
    settings: str
    seconds: float
