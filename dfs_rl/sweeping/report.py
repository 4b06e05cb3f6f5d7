"""Report of a sweep: summary, tables, CSV file and HTML page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import pandas as pd

from dfs_rl.evaluation.comparison_records import Spread, spread
from dfs_rl.evaluation.curves import hypervolume
from dfs_rl.evaluation.number_format import duration_text, number_text, setting_text, spread_text
from dfs_rl.reporting.render import render
from dfs_rl.reporting.style import short_middle
from dfs_rl.reporting.tables import Groups, aligned_table, filled
from dfs_rl.sweeping.figures import SweepFigure
from dfs_rl.sweeping.results import DEFAULTS, SweepRecord, TrialRecord, TrialStatus

_MAX_NAMED = 5  # maximum number of trials or settings that a sentence names
_MAX_COLUMNS = 4  # maximum number of best trials in the printed table
_MAX_LETTERS = 18  # maximum number of characters of a printed setting


def summary(record: SweepRecord) -> list[str]:
    """Return at most five sentences: trials, best trials, fresh seeds, importance, hypervolume."""
    counted = Counter(trial.status for trial in record.trials)
    counts = [f"{counted[status]} {status}" for status in get_args(TrialStatus) if counted[status]]
    sentences = [f"Trials in {duration_text(record.seconds)}: {', '.join(counts) or 'none'}."]
    if record.best:
        sentences += [_best(record), _fresh_seeds(record), _importance(record)]
    else:
        sentences.append("No trial has a result, so there is nothing to recommend.")
    if record.points:
        corner = record.reference_point
        area = hypervolume(record.points, reference_point=corner)
        sentences.append(
            f"Hypervolume of all points at the end of trials: {area:.3f} % x decades, left of "
            f"{corner.computation:g} % {record.file.cost_model} and above "
            f"{number_text(corner.accuracy)} % accuracy."
        )
    return sentences


def _best(record: SweepRecord) -> str:
    values = record.trial(record.best[0]).values
    if len(values) > 1:
        return f"Pareto front of the finished trials on val: {_listed(record.best)}."
    equal = [name for name in record.best[1:] if record.trial(name).values == values]
    chance = f", equal to {_listed(equal)}" if equal else ""
    [(name, value)] = values.items()
    return f"Best on val: trial {record.best[0]} with {name} {number_text(value)}{chance}."


def _fresh_seeds(record: SweepRecord) -> str:
    """Return which trials beat the defaults: better in one value and worse in none."""
    trials = [again.name for again in record.retrained if again.name != DEFAULTS and again.seeds]
    if not trials:
        return "No trial was retrained on fresh seeds, so values of the search may be luck."
    if record.defaults is None or not record.defaults.seeds:
        return "The defaults have no result on fresh seeds, so no gain over them is known."
    marks = retrained_table(record).groupby("retrained")["mark"].agg("".join)[trials]
    is_better, is_worse = (marks.str.contains(mark, regex=False) for mark in "+-")
    if winners := list(marks[is_better & ~is_worse].index):
        return f"Better than the defaults on fresh seeds: {_listed(winners)}."
    if (is_worse & ~is_better).all():
        return "The defaults are better than every retrained trial; keep the defaults."
    return "No retrained trial is shown to be better than the defaults."


def _importance(record: SweepRecord) -> str:
    ranked = sorted(record.importance.items(), key=lambda item: -item[1])[:_MAX_NAMED]
    if not ranked:
        return "Importance of the settings is unknown: too few trials have different values."
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked)
    return f"Importance for {next(iter(record.file.objective.modes))}: {shares}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    listed = ", ".join(names[:_MAX_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: setting_text(value) for name, value in values.items()}


def _trial_texts(trial: TrialRecord, labels: Mapping[str, str]) -> dict[str, str]:
    values = {labels[name]: number_text(value) for name, value in trial.values.items()}
    return values | _texts(trial.settings)


def _cells(table: pd.DataFrame) -> tuple[Sequence[str], Groups]:
    return list(table.columns), [table.values.tolist()]


def best_table(record: SweepRecord, most: int | None = None) -> pd.DataFrame:
    """Return values and settings of the ``most`` best trials, a column each, and the defaults."""
    labels = record.file.objective.labels
    columns = {name: _trial_texts(record.trial(name), labels) for name in record.best[:most]}
    if record.defaults is not None:
        columns[DEFAULTS] = _texts(record.defaults.settings)
    rows = [*labels.values(), *record.file.search]
    return (
        pd.DataFrame(columns, index=rows, dtype=object)
        .fillna("")
        .rename_axis("trial")
        .reset_index()
    )


def retrained_table(record: SweepRecord) -> pd.DataFrame:
    """Return the retrained configurations; marks are gains beyond two standard deviations."""
    objective, rows = record.file.objective, []
    for again in record.retrained:
        for name, label in objective.labels.items():
            gain = None
            if record.defaults is not None and again.name != DEFAULTS:
                gain = again.gain(record.defaults, name, objective.modes[name])
            before = again.search_values.get(name)
            rows.append(
                {
                    "retrained": again.name,
                    "objective": label,
                    "search": "" if before is None else number_text(before),
                    "fresh seeds": (
                        spread_text(spread(again.values[name])) if again.seeds else "failed"
                    ),
                    "seeds": str(len(again.seeds)),
                    "gain over defaults": "" if gain is None else spread_text(gain),
                    "mark": "" if gain is None else _mark(gain, whole=not again.failed),
                }
            )
    return pd.DataFrame(rows)


def _mark(gain: Spread, *, whole: bool) -> str:
    """Return the mark of a gain; seeds that failed may be the bad ones, so then none is marked."""
    if gain.is_significant:
        return "+" * whole
    loss = Spread(mean=-gain.mean, deviation=gain.deviation)
    return "-" if loss.is_significant else ""


def trial_table(record: SweepRecord) -> pd.DataFrame:
    """Return all trials, the best values first and trials without a value last."""
    labels = record.file.objective.labels
    name = next(iter(record.file.objective.modes))  # which is maximized
    ranked = sorted(record.trials, key=lambda trial: -trial.values.get(name, float("-inf")))
    rows = [
        {
            "trial": trial.name,
            "status": trial.status,
            "trained %": f"{100 * trial.progress:.0f}",
            "minutes": f"{trial.seconds / 60:.1f}",
            **_trial_texts(trial, labels),
        }
        for trial in ranked
    ]
    columns = ["trial", "status", *labels.values(), "trained %", "minutes", *record.file.search]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna("")


def failures(record: SweepRecord) -> dict[str, str]:
    """Return the reasons of all failures, by trial or by configuration and seed."""
    trials = {f"trial {t.name}": t.reason for t in record.trials if t.reason is not None}
    again = {
        f"{again.name} on seed {seed}": reason
        for again in record.retrained
        for seed, reason in again.failed.items()
    }
    return trials | again


def results_csv(record: SweepRecord) -> str:
    """Return one CSV line per trial.

    Settings have full precision. Lists and points are JSON: ``[[computation, accuracy], ...]``.
    """
    columns = ["trial", "status", "reason", "progress", "seconds"]
    columns += [*record.file.objective.modes, *record.file.search, "points"]
    rows = [
        {
            **vars(trial),
            "trial": trial.name,
            **trial.values,
            **{n: v if isinstance(v, str) else json.dumps(v) for n, v in trial.settings.items()},
            "points": json.dumps(trial.points),
        }
        for trial in record.trials
    ]
    text: str = pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False)
    return text


def sweep_text(record: SweepRecord) -> str:
    """Return the best trials, their results on fresh seeds, the summary, and the failures."""
    parts = [record.title, filled(record.about)]
    if record.best:
        table = best_table(record, _MAX_COLUMNS)
        shortened = table.map(lambda text: short_middle(text, _MAX_LETTERS))
        parts.append(aligned_table(*_cells(shortened)))
    if record.retrained:
        parts.append(aligned_table(*_cells(retrained_table(record))))
    parts.append("\n".join(map(filled, summary(record))))
    if failed := failures(record):
        parts.append("\n".join(f"Failed: {name}: {reason}" for name, reason in failed.items()))
    return "\n\n".join(parts) + "\n"


def sweep_page(record: SweepRecord, figures: Sequence[SweepFigure], settings: str) -> str:
    """Return the HTML page with the figures and the resolved sweep file, ``settings``."""
    return render(
        "sweep.html",
        title=record.title,
        about=record.about,
        summary=summary(record),
        failed=failures(record),
        record=record,
        best=_cells(best_table(record)),
        retrained=_cells(retrained_table(record)),
        figures=figures,
        trials=_cells(trial_table(record)),
        settings=settings,
    )
