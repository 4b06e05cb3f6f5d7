"""A sweep as text for the screen and as rows for a spreadsheet."""

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
"""Best trials beside each other on a screen."""
_LONGEST = 18
"""Characters of a setting on a screen."""

Rows = list[tuple[str, ...]]
Groups = list[Rows]


def sweep_text(record: SweepRecord) -> str:
    """Return the best trials, what became of them on fresh seeds, what failed, and the verdict."""
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
    """Return head and cells of the best trials, a column each, and of the defaults where they are known.

    Args:
        record: The sweep.
        most: How many best trials to show at most, None for all of them.
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
    """Return head and cells of the configurations that were trained again, each beside what the sweep had."""
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
    """Return head and cells of all trials: those with values from the best one down, then the others."""
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
    """Return the reasons of everything that failed, by what it was."""
    trials = {f"trial {t.name}": t.reason for t in record.trials if t.reason is not None}
    again = {
        f"{again.name} on seed {seed}": reason
        for again in record.retrained
        for seed, reason in again.failed.items()
    }
    return trials | again


def sweep_csv(record: SweepRecord) -> str:
    """Return one line per trial; settings are exact, those that are lists and the points are JSON: ``[[computation, accuracy], ...]``."""
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
    """Return what heads call one of the objective's values."""
    unit = record.objective.units[record.objective.names.index(name)]
    return f"{name} {unit}" if unit in ("", "%") else f"{name}, {unit}"


def _exact(value: Setting) -> str:
    """Return a setting with all its digits; strings as they are, everything else as JSON has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
