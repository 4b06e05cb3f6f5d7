"""Conversion of Ray Tune's results to the records that reports read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import create_trial
from ray.tune import Result

from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.records import RetrainedRecord, TrialRecord, TrialStatus
from dfs_rl.sweeping.search import optuna_distribution
from dfs_rl.sweeping.space import decode_value, encode_value
from dfs_rl.sweeping.spec import SweepFile
from dfs_rl.sweeping.trial import CANDIDATE, FAILED, FULL_PROGRESS, POINTS, PROGRESS, SEED
from dfs_rl.utils.config import config_to_dict, usual_settings

_MIN_VALUES = 8
"""Minimum number of distinct values for an estimate of importances."""


def trial_records(results: Sequence[Result], file: SweepFile) -> tuple[TrialRecord, ...]:
    """Return the results of the search; trials are named by their order."""
    return tuple(
        _trial_record(f"{number:03d}", result, file)
        for number, result in enumerate(results, start=1)
    )


def _trial_record(name: str, result: Result, file: SweepFile) -> TrialRecord:
    metrics: Mapping[str, Any] = result.metrics or {}
    reason = _reason(result, file)
    valued = PROGRESS in metrics and reason is None and not is_penalty(metrics)
    reports = _reports(result, file)
    return TrialRecord(
        name=name,
        settings={
            setting: decode_value(value) if file.search[setting].values else value
            for setting, value in (result.config or {}).items()
        },
        status=_status(metrics, reason),
        reason=reason,
        progress=float(metrics.get(PROGRESS, 0.0)) / FULL_PROGRESS,
        values={n: float(metrics[n]) for n in file.objective.names} if valued else {},
        history=reports,
        points=_points(metrics),
        seconds=float(metrics.get("time_total_s", 0.0)),
    )


def _status(metrics: Mapping[str, Any], reason: str | None) -> TrialStatus:
    if reason is not None:
        return "failed"
    if PROGRESS not in metrics:
        return "unfinished"
    return "finished" if metrics[PROGRESS] >= FULL_PROGRESS else "stopped"


def _reason(result: Result, file: SweepFile) -> str | None:
    """Return the reason of a failure, or None.

    It is the reported error, Ray's error for a process that died too often, or a result above the
    budget.
    """
    metrics = result.metrics or {}
    if metrics.get(FAILED):
        return str(metrics[FAILED])
    if result.error is None:
        above = metrics.get(PROGRESS, 0.0) >= FULL_PROGRESS and is_penalty(metrics)
        budget = file.objective.budget
        return (
            f"its cheapest point on val costs more than the budget of {budget:g} %"
            if above
            else None
        )
    lines = [line.strip() for line in str(result.error).splitlines() if line.strip()]
    return lines[0] if lines else type(result.error).__name__


def _reports(result: Result, file: SweepFile) -> tuple[tuple[float, float], ...]:
    """Return progress and first objective of every report; the last one wins at equal progress."""
    table = result.metrics_dataframe
    name = file.objective.names[0]
    if table is None or PROGRESS not in table or name not in table:
        return ()
    rows = table[[PROGRESS, name, FAILED]].to_dict("records")
    reports = {
        row[PROGRESS] / FULL_PROGRESS: float(row[name])
        for row in rows
        if not row[FAILED] and not is_penalty(row)
    }
    return tuple(sorted(reports.items()))


def _points(metrics: Mapping[str, Any]) -> tuple[CurvePoint, ...]:
    """Return the points of all seeds of a trial."""
    of_seeds = json.loads(metrics.get(POINTS) or "[]")
    return tuple(CurvePoint(*point) for points in of_seeds for point in points)


def best_trials(trials: Sequence[TrialRecord], file: SweepFile) -> tuple[str, ...]:
    """Return the names of the finished trials, the best one first.

    With two objectives, only the non-dominated trials, the most accurate one first.
    """
    sign = _signs(file)
    first = file.objective.names[0]
    finished = [trial for trial in trials if trial.status == "finished"]
    ranked = sorted(finished, key=lambda trial: sign[first] * trial.values[first], reverse=True)
    if len(sign) > 1:
        ranked = [t for t in ranked if not any(_dominates(other, t, sign) for other in finished)]
    return tuple(trial.name for trial in ranked)


def _signs(file: SweepFile) -> dict[str, int]:
    objective = file.objective
    directions = zip(objective.names, objective.modes, strict=True)
    return {name: 1 if mode == "max" else -1 for name, mode in directions}


def _dominates(one: TrialRecord, other: TrialRecord, sign: Mapping[str, int]) -> bool:
    """Return whether ``one`` is at least as good as ``other`` in all values and better in one."""
    gains = [s * (one.values[name] - other.values[name]) for name, s in sign.items()]
    return min(gains) >= 0 and max(gains) > 0


def importances(trials: Sequence[TrialRecord], file: SweepFile) -> dict[str, float]:
    """Return the fraction of the first objective's variance explained by each setting.

    The estimate is fANOVA (Hutter et al., 2014). Trials that were stopped early count as well. All
    trials are compared at the latest progress that all of them have reached; otherwise the estimate
    would reflect the progress of the trials. The result is empty with fewer than eight distinct
    values.
    """
    compared = [t for t in trials if t.status in ("finished", "stopped") and t.history]
    if not compared:
        return {}
    earliest_end = min(trial.history[-1][0] for trial in compared)
    common = max([earliest_end, *(trial.history[0][0] for trial in compared)])
    values = [[v for progress, v in trial.history if progress <= common][-1] for trial in compared]
    if len(set(values)) < _MIN_VALUES:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize" if file.objective.modes[0] == "max" else "minimize"
    )
    distributions = {name: optuna_distribution(domain) for name, domain in file.search.items()}
    for trial, value in zip(compared, values, strict=True):
        params = {
            name: encode_value(setting) if file.search[name].values else setting
            for name, setting in trial.settings.items()
        }
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=file.seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def retrained_records(
    results: Sequence[Result],
    candidates: Mapping[str, Mapping[str, object]],
    trials: Sequence[TrialRecord],
    file: SweepFile,
) -> tuple[RetrainedRecord, ...]:
    """Return the results of the candidates on fresh seeds.

    Args:
        results: Results from Tune.
        candidates: Searched settings by the name of a trial, or ``DEFAULTS``.
        trials: Trials of the search.
        file: The sweep.
    """
    search_values = {trial.name: trial.values for trial in trials}
    records = []
    for number, (name, settings) in enumerate(candidates.items()):
        ours = [r for r in results if (r.config or {})[CANDIDATE] == number]
        done = [r for r in ours if _status(r.metrics or {}, _reason(r, file)) == "finished"]
        metrics: list[Mapping[str, Any]] = [r.metrics or {} for r in done]
        records.append(
            RetrainedRecord(
                name=name,
                settings=settings,  # type: ignore[arg-type]
                search_values=search_values.get(name, {}),
                seeds=tuple((r.config or {})[SEED] for r in done),
                values={n: tuple(float(m[n]) for m in metrics) for n in file.objective.names},
                points=tuple(_points(m) for m in metrics),
                failed={
                    (r.config or {})[SEED]: _reason(r, file) or "it was ended before its end"
                    for r in ours
                    if r not in done
                },
            )
        )
    return tuple(records)


def best_settings(file: SweepFile, values: Mapping[str, object]) -> dict[str, Any]:
    """Return the non-default settings that a configuration file needs to train with ``values``.

    Seed and run folder are excluded.
    """
    config = file.config(values)
    chosen = differing(config_to_dict(config), usual_settings(config))
    return {name: value for name, value in chosen.items() if name not in ("seed", "run_dir")}


def differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of nested settings that differ from ``usual``."""
    found = {}
    for name, value in values.items():
        before = usual.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inside := differing(value, before):
                found[name] = inside
        elif value != before:
            found[name] = value
    return found
