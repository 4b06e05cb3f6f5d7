"""Results of a sweep: conversion of Ray Tune's results to the records that reports read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from ray.tune import Result

from dfs_rl.evaluation.comparison_records import Spread, spread
from dfs_rl.evaluation.curves import CurvePoint, pareto_front
from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.space import encode_value, optuna_distribution, with_settings
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.sweeping.trial import FAILED, FULL_PROGRESS, POINTS, PROGRESS, SEED
from dfs_rl.utils.config import config_to_dict, flat_settings, usual_settings

DEFAULTS = "defaults"
"""Name of the default settings among the retrained configurations."""
_MIN_VALUES = 8  # minimum number of distinct values for an estimate of importances

TrialStatus = Literal["finished", "stopped", "failed", "unfinished"]
"""``stopped`` trials were ended by the scheduler, ``unfinished`` ones neither ended nor failed."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Result of one trial."""

    name: str  # 001 and so on, in the order of creation
    settings: Mapping[str, Any]  # searched ones at the end of the trial, by dotted name
    status: TrialStatus
    reason: str | None  # of a failure
    progress: float  # completed fraction of a training, in [0, 1]
    values: Mapping[str, float]  # final values of the objective by name; empty without validations
    history: tuple[tuple[float, float], ...]  # progress and first objective at every validation
    points: tuple[CurvePoint, ...]  # on val at the end; several for all budgets or a supernet
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RetrainedRecord:
    """A configuration retrained on fresh seeds, to measure the selection bias of the search."""

    name: str  # of the original trial, or ``DEFAULTS``
    settings: Mapping[str, Any]  # searched ones by dotted name
    search_values: Mapping[str, float]  # of the objective in the search; empty for the defaults
    seeds: tuple[int, ...]  # without those that failed
    values: Mapping[str, tuple[float, ...]]  # of the objective by name, one for each seed
    points: tuple[tuple[CurvePoint, ...], ...]  # on val, for each seed
    failed: Mapping[int, str]  # reasons of failed trainings by seed

    def gain(self, defaults: "RetrainedRecord", name: str, mode: str) -> Spread | None:
        """Return the paired improvement over the defaults on the common seeds, None without."""
        theirs = dict(zip(defaults.seeds, defaults.values.get(name, ()), strict=True))
        pairs = zip(self.seeds, self.values.get(name, ()), strict=True)
        sign = 1 if mode == "max" else -1
        gains = [sign * (value - theirs[seed]) for seed, value in pairs if seed in theirs]
        return spread(gains) if gains else None


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Result of a whole sweep."""

    title: str
    about: str  # one line: number of val images, searcher, scheduler, objective
    file: SweepFile
    trials: tuple[TrialRecord, ...]  # in the order of their creation
    best: tuple[str, ...]  # names of trials, see ``best_trials``
    retrained: tuple[RetrainedRecord, ...]  # best trials and defaults
    importance: Mapping[str, float]  # by dotted name, see ``importances``
    reference_point: CurvePoint
    commands: tuple[str, ...]  # that train the best configuration and repeat the sweep
    seconds: float  # wall time, all resumptions together

    @property
    def points(self) -> list[CurvePoint]:
        """Points of all trials."""
        return [point for trial in self.trials for point in trial.points]

    @property
    def defaults(self) -> RetrainedRecord | None:
        """The defaults on fresh seeds, None if they were not retrained."""
        return next((again for again in self.retrained if again.name == DEFAULTS), None)

    def trial(self, name: str) -> TrialRecord:
        """Return the trial with this name."""
        return next(trial for trial in self.trials if trial.name == name)


def trial_record(name: str, result: Result, file: SweepFile) -> TrialRecord:
    """Return the result of a trial of the search."""
    metrics: Mapping[str, Any] = result.metrics or {}
    reason = _reason(result, file)
    valued = PROGRESS in metrics and reason is None and not is_penalty(metrics)
    return TrialRecord(
        name=name,
        settings=file.decoded(result.config or {}),
        status=_status(metrics, reason),
        reason=reason,
        progress=float(metrics.get(PROGRESS, 0.0)) / FULL_PROGRESS,
        values={n: float(metrics[n]) for n in file.objective.modes} if valued else {},
        history=_history(result, file),
        points=_points(metrics),
        seconds=float(metrics.get("time_total_s", 0.0)),
    )


def retrained_record(
    name: str,
    settings: Mapping[str, object],
    search_values: Mapping[str, float],
    results: Sequence[Result],
    file: SweepFile,
) -> RetrainedRecord:
    """Return the results of a configuration on fresh seeds; for the arguments see the record."""
    done: dict[int, Mapping[str, Any]] = {}
    failed: dict[int, str] = {}
    for result in results:
        seed, metrics = (result.config or {})[SEED], result.metrics or {}
        reason = _reason(result, file)
        if _status(metrics, reason) == "finished":
            done[seed] = metrics
        else:
            failed[seed] = reason or "it was ended before its end"
    return RetrainedRecord(
        name=name,
        settings=settings,
        search_values=search_values,
        seeds=tuple(done),
        values={n: tuple(float(m[n]) for m in done.values()) for n in file.objective.modes},
        points=tuple(map(_points, done.values())),
        failed=failed,
    )


def _status(metrics: Mapping[str, Any], reason: str | None) -> TrialStatus:
    if reason is not None:
        return "failed"
    if PROGRESS not in metrics:
        return "unfinished"
    return "finished" if metrics[PROGRESS] >= FULL_PROGRESS else "stopped"


def _reason(result: Result, file: SweepFile) -> str | None:
    """Return the reported error, Ray's error, or the reason why a result does not count."""
    metrics = result.metrics or {}
    if metrics.get(FAILED):
        return str(metrics[FAILED])
    if result.error is not None:
        lines = [line.strip() for line in str(result.error).splitlines() if line.strip()]
        return lines[0] if lines else type(result.error).__name__
    if metrics.get(PROGRESS, 0.0) >= FULL_PROGRESS and is_penalty(metrics):
        budget = file.objective.budget
        return f"its cheapest point on val costs more than the budget of {budget:g} %"
    return None


def _history(result: Result, file: SweepFile) -> tuple[tuple[float, float], ...]:
    """Return progress and first objective of every report; the last one wins at equal progress."""
    table = result.metrics_dataframe
    name = next(iter(file.objective.modes))
    if table is None or PROGRESS not in table or name not in table:
        return ()
    reports = {
        row[PROGRESS] / FULL_PROGRESS: float(row[name])
        for row in table[[PROGRESS, name, FAILED]].to_dict("records")
        if not row[FAILED] and not is_penalty(row)
    }
    return tuple(sorted(reports.items()))


def _points(metrics: Mapping[str, Any]) -> tuple[CurvePoint, ...]:
    """Return the points of all seeds of a trial."""
    of_seeds = json.loads(metrics.get(POINTS) or "[]")
    return tuple(CurvePoint(*point) for points in of_seeds for point in points)


def best_trials(trials: Sequence[TrialRecord], file: SweepFile) -> tuple[str, ...]:
    """Return the names of finished trials, the best first; of two objectives the Pareto front."""
    finished = {trial.name: trial.values for trial in trials if trial.status == "finished"}
    if file.objective.name == "pareto_front":
        front = pareto_front([CurvePoint(**values) for values in finished.values()])
        finished = {n: values for n, values in finished.items() if CurvePoint(**values) in front}
    name = next(iter(file.objective.modes))  # which is maximized
    return tuple(sorted(finished, key=lambda trial: finished[trial][name], reverse=True))


def study_of(
    trials: Sequence[TrialRecord], values: Sequence[float], file: SweepFile, mode: str
) -> optuna.Study:
    """Return trials and their values as a study of Optuna, in the direction ``max`` or ``min``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    for trial, value in zip(trials, values, strict=True):
        params = {
            name: encode_value(setting) if file.search[name].values else setting
            for name, setting in trial.settings.items()
        }
        study.add_trial(
            create_trial(
                params=params,
                distributions={name: optuna_distribution(file.search[name]) for name in params},
                value=value,
                intermediate_values={round(100 * p): v for p, v in trial.history},
            )
        )
    return study


def comparable_study(trials: Sequence[TrialRecord], file: SweepFile) -> optuna.Study | None:
    """Return the trials with the first objective at the same progress, for importances.

    Trials that were stopped early count as well. All trials are compared at the latest progress
    that all of them have reached; otherwise importances would reflect the progress of the trials.
    The result is None with fewer than eight distinct values.
    """
    compared = [t for t in trials if t.status in ("finished", "stopped") and t.history]
    if not compared:
        return None
    earliest_end = min(trial.history[-1][0] for trial in compared)
    common = max([earliest_end, *(trial.history[0][0] for trial in compared)])
    values = [[v for progress, v in trial.history if progress <= common][-1] for trial in compared]
    if len(set(values)) < _MIN_VALUES:
        return None
    return study_of(compared, values, file, next(iter(file.objective.modes.values())))


def importances(trials: Sequence[TrialRecord], file: SweepFile) -> dict[str, float]:
    """Return the fraction of the first objective's variance explained by each setting.

    The estimate is fANOVA (Hutter et al., 2014), empty if there is no ``comparable_study``.
    """
    study = comparable_study(trials, file)
    evaluator = FanovaImportanceEvaluator(seed=file.seed)
    return {} if study is None else get_param_importances(study, evaluator=evaluator)


def best_settings(file: SweepFile, values: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings that differ from the defaults, without seed and run folder, nested."""
    config = file.config(values)
    usual = flat_settings(usual_settings(config))
    chosen = {
        name: value
        for name, value in flat_settings(config_to_dict(config)).items()
        if value != usual.get(name) and name not in ("seed", "run_dir")
    }
    return with_settings({}, chosen)
