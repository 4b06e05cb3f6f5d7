"""Text and CSV output of a sweep."""

import csv
import io
import json
import textwrap

from dfs_rl.evaluation.number_format import number_text, setting_text, spread_text
from dfs_rl.reporting.style import short_middle
from dfs_rl.reporting.tables import WIDTH, aligned_table
from dfs_rl.sweeping.records import DEFAULTS, Setting, SweepRecord, TrialRecord
from dfs_rl.sweeping.summary import STATUSES, retrained_values, sweep_verdict

_MOST_COLUMNS = 4
"""Maximum number of best trials in the printed table."""
_LONGEST = 18
"""Maximum number of characters of a printed setting."""

Rows = list[tuple[str, ...]]
Groups = list[Rows]


def sweep_text(record: SweepRecord) -> str:
    """Return the best trials, their results on fresh seeds, the verdict, and the failures."""
    parts = [record.title, _filled(f"{record.about} {record.objective.about}")]
    if record.best:
        head, groups = best_table(record, _MOST_COLUMNS)
        cut = [
            [(row[0], *(short_middle(cell, _LONGEST) for cell in row[1:])) for row in g]
            for g in groups
        ]
        parts.append(aligned_table(head, cut))
    if record.retrained:
        parts.append(aligned_table(*retrained_table(record)))
    parts.append("\n".join(map(_filled, sweep_verdict(record))))
    told = [f"Failed: {name}: {reason}" for name, reason in failures(record).items()]
    if told:
        parts.append("\n".join(told))
    return "\n\n".join(parts) + "\n"


def best_table(record: SweepRecord, most: int | None = None) -> tuple[tuple[str, ...], Groups]:
    """Return head and rows of the table of best trials, with a column per trial.

    The defaults have a column if they were retrained.

    Args:
        record: The sweep.
        most: Maximum number of trials, None for all.
    """
    trials = [record.trial(name) for name in record.best[:most]]
    defaults = [again.settings for again in record.retrained if again.name == DEFAULTS]
    chosen = [*(trial.settings for trial in trials), *defaults]
    head = ("", *(trial.name for trial in trials), *(DEFAULTS for _ in defaults))
    values = [
        (
            _with_unit(record, name),
            *(number_text(t.values[name]) for t in trials),
            *("" for _ in defaults),
        )
        for name in record.objective.names
    ]
    settings: Rows = [
        (name, *(setting_text(given[name]) if name in given else "" for given in chosen))
        for name in record.scales
    ]
    return head, [group for group in (values, settings) if group]


def retrained_table(record: SweepRecord) -> tuple[tuple[str, ...], Groups]:
    """Return head and rows of the retrained configurations, with their values in the search."""
    head = (
        "trained again",
        "objective",
        "in the sweep",
        "fresh seeds",
        "seeds",
        "better than defaults by",
    )
    rows: Rows = [
        (
            row.name,
            _with_unit(record, row.objective),
            "" if row.search_value is None else number_text(row.search_value),
            "failed" if row.value is None else spread_text(row.value),
            str(row.seeds),
            "" if row.gain is None else spread_text(row.gain),
        )
        for row in retrained_values(record)
    ]
    return head, [rows]


def trial_table(record: SweepRecord) -> tuple[tuple[str, ...], Groups]:
    """Return head and rows of all trials: those with values, the best one first, then the rest."""
    names = record.objective.names
    head = (
        "trial",
        "status",
        *(_with_unit(record, n) for n in names),
        "trained %",
        "minutes",
        *record.scales,
    )
    sign = -1 if record.objective.maximize[0] else 1
    valued = [trial for trial in record.trials if names[0] in trial.values]
    others = [trial for trial in record.trials if names[0] not in trial.values]
    ranked = sorted(valued, key=lambda trial: sign * trial.values[names[0]])
    rows = [[_cells(record, trial) for trial in group] for group in (ranked, others)]
    return head, [group for group in rows if group]


def failures(record: SweepRecord) -> dict[str, str]:
    """Return the reasons of all failures, by trial or by configuration and seed."""
    trials = {f"trial {t.name}": t.reason for t in record.trials if t.reason is not None}
    again = {
        f"{again.name} on seed {seed}": reason
        for again in record.retrained
        for seed, reason in again.failed.items()
    }
    return trials | again


def sweep_csv(record: SweepRecord) -> str:
    """Return one CSV line per trial.

    Settings have full precision. Lists and points are JSON: ``[[computation, accuracy], ...]``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = record.objective.names
    writer.writerow(
        ["trial", "status", "reason", "progress", "seconds", *names, *record.scales, "points"]
    )
    for trial in record.trials:
        settings = [
            _exact(trial.settings[name]) if name in trial.settings else "" for name in record.scales
        ]
        values = [trial.values.get(name) for name in names]
        writer.writerow(
            [
                trial.name,
                trial.status,
                trial.reason,
                trial.progress,
                trial.seconds,
                *values,
                *settings,
                json.dumps(trial.points),
            ]
        )
    return buffer.getvalue()


def _cells(record: SweepRecord, trial: TrialRecord) -> tuple[str, ...]:
    values = [trial.values.get(name) for name in record.objective.names]
    return (
        trial.name,
        STATUSES[trial.status],
        *("" if value is None else number_text(value) for value in values),
        f"{100 * trial.progress:.0f}",
        f"{trial.seconds / 60:.1f}",
        *(setting_text(trial.settings[n]) if n in trial.settings else "" for n in record.scales),
    )


def _with_unit(record: SweepRecord, name: str) -> str:
    """Return the column head of one of the objective's values."""
    unit = record.objective.units[record.objective.names.index(name)]
    return f"{name} {unit}" if unit in ("", "%") else f"{name}, {unit}"


def _exact(value: Setting) -> str:
    """Return a setting with full precision: strings unchanged, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
