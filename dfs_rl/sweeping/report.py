"""Report of a sweep: summary, tables, CSV file and HTML page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from dfs_rl.evaluation.comparison_records import Spread
from dfs_rl.evaluation.curves import hypervolume
from dfs_rl.evaluation.number_format import duration_text, number_text, setting_text, spread_text
from dfs_rl.reporting.render import render
from dfs_rl.reporting.style import short_middle
from dfs_rl.reporting.tables import Groups, aligned_table, filled
from dfs_rl.sweeping.figures import SweepFigure
from dfs_rl.sweeping.results import DEFAULTS, RetrainedRecord, SweepRecord, TrialStatus

_MAX_NAMED = 5
"""Maximum number of trials or settings that a sentence names."""
_MAX_COLUMNS = 4
"""Maximum number of best trials in the printed table."""
_MAX_LETTERS = 18
"""Maximum number of characters of a printed setting."""
_STATUSES: dict[TrialStatus, str] = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "unfinished": "unfinished",
}


def summary(record: SweepRecord) -> list[str]:
    """Return at most five sentences: trials, best trials, fresh seeds, hypervolume, importance."""
    sentences = [_counts(record), _best(record)]
    if record.best:
        sentences += [_fresh_seeds(record), _importance(record)]
    if record.points:
        corner = record.reference_point
        area = hypervolume(record.points, reference_point=corner)
        sentences.append(
            f"Hypervolume of all trials together: {area:.3f} % x decades, left of "
            f"{corner.computation:g} % computation and above {number_text(corner.accuracy)} % "
            "accuracy."
        )
    return sentences


def _counts(record: SweepRecord) -> str:
    counted = Counter(trial.status for trial in record.trials)
    counts = [f"{counted[status]} {text}" for status, text in _STATUSES.items() if counted[status]]
    return f"Trials in {duration_text(record.seconds)}: {', '.join(counts) or 'none'}."


def _best(record: SweepRecord) -> str:
    if not record.best:
        return "No trial has a result, so there is nothing to recommend."
    values = record.trial(record.best[0]).values
    if len(values) > 1:
        return f"Pareto front of the finished trials on val: {_listed(record.best)}."
    equal = [name for name in record.best[1:] if record.trial(name).values == values]
    chance = f", equal to {_listed(equal)}" if equal else ""
    [(name, value)] = values.items()
    return f"Best on val: trial {record.best[0]} with {name} {number_text(value)}{chance}."


def _fresh_seeds(record: SweepRecord) -> str:
    """Return which trials beat the defaults: better in one value and worse in none."""
    trials = [again for again in record.retrained if again.name != DEFAULTS and again.seeds]
    if not trials:
        return "No trial was retrained on fresh seeds, so values of the search may be luck."
    if record.defaults is None or not record.defaults.seeds:
        return "The defaults have no result on fresh seeds, so no gain over them is known."
    names = record.file.objective.names
    marks = {again.name: {_mark(_gain(record, again, name)) for name in names} for again in trials}
    if winners := [name for name, found in marks.items() if "+" in found and "-" not in found]:
        return f"Better than the defaults on fresh seeds: {_listed(winners)}."
    if all("-" in found and "+" not in found for found in marks.values()):
        return "The defaults are better than every retrained trial; keep the defaults."
    return "No retrained trial is shown to be better than the defaults."


def _gain(record: SweepRecord, again: RetrainedRecord, name: str) -> Spread | None:
    """Return the gain of a retrained trial over the defaults, if both have common seeds."""
    if record.defaults is None or again.name == DEFAULTS:
        return None
    return again.gain(record.defaults, name, record.file.objective.modes[name])


def _mark(gain: Spread | None) -> str:
    """Return + or - for a gain or loss of more than two standard deviations over seeds."""
    if gain is None:
        return ""
    if gain.is_significant:
        return "+"
    return "-" if Spread(mean=-gain.mean, deviation=gain.deviation).is_significant else ""


def _importance(record: SweepRecord) -> str:
    ranked = sorted(record.importance.items(), key=lambda item: -item[1])[:_MAX_NAMED]
    if not ranked:
        return "Importance of the settings is unknown: too few trials have different values."
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked)
    return f"Importance for {record.file.objective.names[0]}: {shares}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    listed = ", ".join(names[:_MAX_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed


def best_table(record: SweepRecord, most: int | None = None) -> pd.DataFrame:
    """Return values and settings of the ``most`` best trials, a column each, and the defaults."""
    labels = record.file.objective.labels
    columns = {}
    for trial in [record.trial(name) for name in record.best[:most]]:
        values = {labels[name]: number_text(value) for name, value in trial.values.items()}
        columns[trial.name] = values | _texts(trial.settings)
    if record.defaults is not None:
        columns[DEFAULTS] = _texts(record.defaults.settings)
    rows = [*labels.values(), *record.file.search]
    return pd.DataFrame(columns, index=rows).fillna("").rename_axis("trial").reset_index()


def retrained_table(record: SweepRecord) -> pd.DataFrame:
    """Return the retrained configurations, with their values in the search.

    A mark shows a gain or loss of more than two standard deviations over seeds.
    """
    rows = []
    for again in record.retrained:
        for name, label in record.file.objective.labels.items():
            before, value = again.search_values.get(name), again.spread(name)
            gain = _gain(record, again, name)
            rows.append(
                {
                    "retrained": again.name,
                    "objective": label,
                    "search": "" if before is None else number_text(before),
                    "fresh seeds": "failed" if value is None else spread_text(value),
                    "seeds": str(len(again.seeds)),
                    "gain over defaults": "" if gain is None else spread_text(gain),
                    "mark": _mark(gain),
                }
            )
    return pd.DataFrame(rows)


def trial_table(record: SweepRecord) -> pd.DataFrame:
    """Return all trials, the best values first and trials without a value last."""
    labels = record.file.objective.labels
    (name, mode), *_ = record.file.objective.modes.items()
    sign = -1 if mode == "max" else 1
    ranked = sorted(
        record.trials, key=lambda t: sign * t.values[name] if name in t.values else float("inf")
    )
    rows = []
    for trial in ranked:
        values = {labels[name]: number_text(value) for name, value in trial.values.items()}
        rows.append(
            {
                "trial": trial.name,
                "status": _STATUSES[trial.status],
                **{label: values.get(label, "") for label in labels.values()},
                "trained %": f"{100 * trial.progress:.0f}",
                "minutes": f"{trial.seconds / 60:.1f}",
                **_texts(trial.settings),
            }
        )
    return pd.DataFrame(rows).fillna("")


def _texts(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: setting_text(value) for name, value in settings.items()}


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
    names, search = record.file.objective.names, record.file.search
    head = ["trial", "status", "reason", "progress", "seconds", *names, *search, "points"]
    rows = [
        {
            **{name: getattr(trial, name) for name in ("status", "reason", "progress", "seconds")},
            "trial": trial.name,
            **trial.values,
            **{n: v if isinstance(v, str) else json.dumps(v) for n, v in trial.settings.items()},
            "points": json.dumps(trial.points),
        }
        for trial in record.trials
    ]
    text: str = pd.DataFrame(rows, columns=head, dtype=object).to_csv(index=False)
    return text


def sweep_text(record: SweepRecord) -> str:
    """Return the best trials, their results on fresh seeds, the summary, and the failures."""
    parts = [record.title, filled(record.about)]
    if record.best:
        table = best_table(record, _MAX_COLUMNS)
        parts.append(
            aligned_table(*_cells(table.map(lambda text: short_middle(text, _MAX_LETTERS))))
        )
    if record.retrained:
        parts.append(aligned_table(*_cells(retrained_table(record))))
    parts.append("\n".join(map(filled, summary(record))))
    if failed := failures(record):
        parts.append("\n".join(f"Failed: {name}: {reason}" for name, reason in failed.items()))
    return "\n\n".join(parts) + "\n"


def _cells(table: pd.DataFrame) -> tuple[Sequence[str], Groups]:
    """Return head and rows."""
    return list(table.columns), [table.values.tolist()]


def sweep_page(record: SweepRecord, figures: Sequence[SweepFigure], settings: str) -> str:
    """Return the HTML page.

    Args:
        record: Results of the sweep.
        figures: Figures from ``sweep_figures``.
        settings: Resolved sweep file, as YAML.
    """
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
