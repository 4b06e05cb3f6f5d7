"""What a sweep's trials came to, as records that reports read."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import optuna
from optuna.trial import create_trial
from ray.tune import Result, ResultGrid

from dfs_rl.config import config_to_dict
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.sweep_records import RetrainedRecord, TrialRecord, TrialStatus
from dfs_rl.sweeping.commands import command_of
from dfs_rl.sweeping.search import optuna_distribution
from dfs_rl.sweeping.space import from_word
from dfs_rl.sweeping.sweep_file import SweepFile
from dfs_rl.sweeping.trial import CANDIDATE, FAILED, POINTS, PROGRESS, SEED

DEFAULTS = "defaults"
"""Name of the configuration in which nothing is searched, among those that are trained again."""
_WHOLE = 100.0
_FEWEST = 4
"""Trials below which nothing can be said of what matters."""


def trial_records(grid: ResultGrid, file: SweepFile) -> tuple[TrialRecord, ...]:
    """Return what came of the search, in the order in which trials were made."""
    return tuple(
        _trial_record(f"{number:03d}", result, file) for number, result in enumerate(grid, start=1)
    )


def _trial_record(name: str, result: Result, file: SweepFile) -> TrialRecord:
    metrics: Mapping[str, Any] = result.metrics or {}
    reason = _reason(result)
    made = PROGRESS in metrics and not metrics.get(FAILED)
    reports = _reports(result, file)
    return TrialRecord(
        name=name,
        settings={
            setting: from_word(value) if file.search[setting].values else value
            for setting, value in (result.config or {}).items()
        },
        status=_status(metrics, reason),
        reason=reason,
        progress=float(metrics.get(PROGRESS, 0.0)) / _WHOLE,
        values={n: float(metrics[n]) for n in file.objective.names} if made else {},
        history=reports,
        points=_points(metrics),
        seconds=float(metrics.get("time_total_s", 0.0)),
    )


def _status(metrics: Mapping[str, Any], reason: str | None) -> TrialStatus:
    if reason is not None:
        return "failed"
    if PROGRESS not in metrics:
        return "unfinished"
    return "finished" if metrics[PROGRESS] >= _WHOLE else "stopped"


def _reason(result: Result) -> str | None:
    """Return why a trial failed: its own words, or what Ray says of a process or node that died too often."""
    if result.metrics and result.metrics.get(FAILED):
        return str(result.metrics[FAILED])
    if result.error is None:
        return None
    lines = [line.strip() for line in str(result.error).splitlines() if line.strip()]
    return lines[0] if lines else type(result.error).__name__


def _reports(result: Result, file: SweepFile) -> tuple[tuple[float, float], ...]:
    """Return progress and first objective of every report; the same progress is told once, as it was told last."""
    table = result.metrics_dataframe
    name = file.objective.names[0]
    if table is None or PROGRESS not in table or name not in table:
        return ()
    rows = table[[PROGRESS, name, FAILED]].to_dict("records")
    told = {row[PROGRESS] / _WHOLE: float(row[name]) for row in rows if not row[FAILED]}
    return tuple(sorted(told.items()))


def _points(metrics: Mapping[str, Any]) -> tuple[CurvePoint, ...]:
    """Return the points of all seeds of a trial."""
    of_seeds = json.loads(metrics.get(POINTS) or "[]")
    return tuple(CurvePoint(*point) for points in of_seeds for point in points)


def best_names(trials: Sequence[TrialRecord], file: SweepFile) -> tuple[str, ...]:
    """Return the trials that came to their end, the best one first.

    With two objectives, those that no other trial beats in both, the most accurate one first.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    sign = {n: 1 if m == "max" else -1 for n, m in zip(file.objective.names, file.objective.modes, strict=True)}
    first = file.objective.names[0]
    ranked = sorted(finished, key=lambda t: sign[first] * t.values[first], reverse=True)
    return tuple(t.name for t in ranked if not any(_beats(o, t, sign) for o in finished))if len(sign) > 1 else tuple(t.name for t in ranked)


def _beats(one: TrialRecord, other: TrialRecord, sign: Mapping[str, int]) -> bool:
    """Whether one trial is nowhere worse than another, and somewhere better."""
    gains = [s * (one.values[name] - other.values[name]) for name, s in sign.items()]
    return min(gains) >= 0 and max(gains) > 0


def importances(trials: Sequence[TrialRecord], file: SweepFile) -> dict[str, float]:
    """Return the share of the first objective's variation that each setting explains (fANOVA, Hutter et al., 2014).

    Trials that were stopped early count too, so all are compared where the one that was stopped first stood; otherwise what was
    told apart would be how far they came.
    """
    compared = [trial for trial in trials if trial.status in ("finished", "stopped") and trial.history]
    if len(compared) < _FEWEST:
        return {}
    common = min(trial.history[-1][0] for trial in compared)
    values = [max(h for h in trial.history if h[0] <= common)[1] if trial.history[0][0] <= common else None for trial in compared]
    distributions = {name: optuna_distribution(domain) for name, domain in file.search.items()}
    study = optuna.create_study(direction="maximize" if file.objective.modes[0] == "max" else "minimize")
    for trial, value in zip(compared, values, strict=True):
        if value is not None:
            study.add_trial(create_trial(params=_params(trial, file), distributions=distributions, value=value))
    return {}
