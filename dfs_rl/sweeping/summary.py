"""Summary sentences of a sweep: best trials, selection bias, and comparison with the defaults."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dfs_rl.evaluation.comparison_records import Spread, spread
from dfs_rl.evaluation.comparison_summary import is_significant_over_seeds
from dfs_rl.evaluation.curves import hypervolume
from dfs_rl.evaluation.number_format import duration_text, number_text, spread_text
from dfs_rl.sweeping.records import DEFAULTS, RetrainedRecord, SweepRecord, TrialStatus

STATUSES: dict[TrialStatus, str] = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "unfinished": "not brought to an end",
}
"""Names of the states in texts, in the order of their counts."""

_MAX_NAMED = 5
"""Maximum number of trials or settings that a sentence names."""

_LUCKY = "Chosen in part by luck, worse on fresh seeds by more than two standard deviations"
_SAME = "On fresh seeds within two standard deviations of the sweep"
_BETTER = "Better on fresh seeds by more than two standard deviations"
_ONE_SEED = "One fresh seed cannot tell luck in being chosen from chance"
_FRESH = "On fresh seeds"


class RetrainedValue(NamedTuple):
    """One value of the objective on fresh seeds.

    Attributes:
        name: Name of the trial, or ``defaults``.
        objective: Name of the value.
        seeds: Number of fresh seeds.
        value: Mean and deviation over the seeds, None without seeds.
        search_value: Value in the search, None for the defaults.
        gain: Paired improvement over the defaults on the common seeds; None without such seeds.
    """

    name: str
    objective: str
    seeds: int
    value: Spread | None
    search_value: float | None
    gain: Spread | None


def retrained_values(record: SweepRecord) -> list[RetrainedValue]:
    """Return all objective values of the retrained configurations."""
    defaults = next((again for again in record.retrained if again.name == DEFAULTS), None)
    return [
        _retrained_value(again, name, defaults, maximize=maximize)
        for again in record.retrained
        for name, maximize in zip(record.objective.names, record.objective.maximize, strict=True)
    ]


def _retrained_value(
    again: RetrainedRecord, name: str, defaults: RetrainedRecord | None, *, maximize: bool
) -> RetrainedValue:
    values = dict(zip(again.seeds, again.values.get(name, ()), strict=True))
    gain = None
    if defaults is not None and defaults is not again:
        theirs = dict(zip(defaults.seeds, defaults.values.get(name, ()), strict=True))
        sign = 1 if maximize else -1
        gains = [sign * (values[seed] - theirs[seed]) for seed in values if seed in theirs]
        gain = spread(gains) if gains else None
    return RetrainedValue(
        again.name,
        name,
        len(values),
        spread(list(values.values())) if values else None,
        again.search_values.get(name),
        gain,
    )


def sweep_verdict(record: SweepRecord) -> tuple[str, ...]:
    """Return the summary sentences of a sweep."""
    return (
        _counts(record),
        _found(record),
        *(_fresh_seeds(record) if record.best else ()),
        *_joint_hypervolume(record),
        *_importance(record),
    )


def _counts(record: SweepRecord) -> str:
    counted = Counter(trial.status for trial in record.trials)
    told = ", ".join(
        f"{counted[status]} {name}" for status, name in STATUSES.items() if counted[status]
    )
    return f"{_count(len(record.trials), 'trial')} in {duration_text(record.seconds)}: {told or 'none'}."


def _found(record: SweepRecord) -> str:
    objective = record.objective
    if not record.best:
        return "There is no best trial, so there is nothing to recommend."
    if len(objective.names) == 1:
        best, *others = record.best
        values = record.trial(best).values
        tied = [name for name in others if record.trial(name).values == values]
        equal = (
            f" Equal on val: {_listed(tied)}; which of them stands first is chance." if tied else ""
        )
        return f"Best on val: trial {best}, {_values(record, best)}.{equal}"
    names = " and ".join(objective.names)
    told = _listed([f"{name} ({_values(record, name)})" for name in record.best])
    return f"On val no other trial is better in both {names} than {told}."


def _values(record: SweepRecord, trial: str) -> str:
    values = record.trial(trial).values
    named = zip(record.objective.names, record.objective.units, strict=True)
    return ", ".join(f"{name} {number_text(values[name])} {unit}".rstrip() for name, unit in named)


def _fresh_seeds(record: SweepRecord) -> Iterator[str]:
    rows = [row for row in retrained_values(record) if row.name != DEFAULTS]
    if not rows:
        yield "Nothing was trained again on fresh seeds: how much of these figures is luck in being chosen is not known."
        return
    found = [(row, row.value) for row in rows if row.value is not None]
    maximize = dict(zip(record.objective.names, record.objective.maximize, strict=True))
    grouped: dict[str, list[str]] = {
        luck: [] for luck in (_LUCKY, _SAME, _BETTER, _ONE_SEED, _FRESH)
    }
    for row, value in found:
        luck = _FRESH
        told = (
            f"{row.name} in {row.objective} {spread_text(value)} over {_count(row.seeds, 'seed')}"
        )
        if row.search_value is not None:
            sign = 1 if maximize[row.objective] else -1
            luck = _luck(
                Spread(mean=sign * (value.mean - row.search_value), deviation=value.deviation)
            )
            told += f", {number_text(row.search_value)} in the sweep"
        grouped[luck].append(told)
    yield from (f"{luck}: {'; '.join(told)}." for luck, told in grouped.items() if told)
    if found:
        yield "What to expect are the figures on fresh seeds, not the sweep's own."
    lost = [again.name for again in record.retrained if not again.seeds]
    if lost:
        yield f"Failed on every fresh seed: {_listed(lost)}."
    yield from _against_defaults([row for row, _ in found])


def _luck(change: Spread) -> str:
    """Return the heading for a change of this size on fresh seeds."""
    if change.deviation is None:
        return _ONE_SEED
    if is_significant_over_seeds(_negative(change)):
        return _LUCKY
    if is_significant_over_seeds(change):
        return _BETTER
    return _SAME


def _against_defaults(rows: Sequence[RetrainedValue]) -> Iterator[str]:
    gains = [(row, row.gain) for row in rows if row.gain is not None]
    if not gains:
        yield "No defaults were trained on the same seeds: whether the sweep beats them is not known."
        return
    better = [row for row, gain in gains if is_significant_over_seeds(gain)]
    worse = [row for row, gain in gains if is_significant_over_seeds(_negative(gain))]
    tied = [row for row, _ in gains if row not in better and row not in worse]
    beyond = "than the defaults on the same seeds, by more than two standard deviations"
    for told, group in (
        (f"Better {beyond}", better),
        (f"Worse {beyond}", worse),
        ("Neither better (+) nor worse (-) than the defaults, as far as these seeds show", tied),
    ):
        if group:
            yield f"{told}: {'; '.join(map(_gain, group))}."
    yield _beaten([row.name for row, _ in gains], _names(better), _names(worse))


def _gain(row: RetrainedValue) -> str:
    assert row.gain is not None
    return f"{row.name} in {row.objective} by {'+' if row.gain.mean > 0 else ''}{spread_text(row.gain)}"


def _beaten(names: Sequence[str], better: set[str], worse: set[str]) -> str:
    """Return the sentence on trials that beat the defaults.

    Such a trial is better in one value and worse in none, beyond the spread over seeds.
    """
    tried = list(dict.fromkeys(names))
    won = [f"trial {name}" for name in tried if name in better and name not in worse]
    if won:
        return f"The defaults are beaten by {_listed(won)}."
    if all(name in worse and name not in better for name in tried):
        return "The defaults are better than every one of them: keep the defaults."
    return "That any of them beats the defaults is not shown."


def _names(rows: Sequence[RetrainedValue]) -> set[str]:
    return {row.name for row in rows}


def _negative(value: Spread) -> Spread:
    return Spread(mean=-value.mean, deviation=value.deviation)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _joint_hypervolume(record: SweepRecord) -> Iterator[str]:
    if not record.points:
        return
    reference_point = record.reference_point
    area = hypervolume(record.points, reference_point=reference_point)
    yield (
        f"All trials together, {_count(len(record.points), 'point')}, dominate an area of "
        f"{area:.3f} points x decades, "
        f"left of {reference_point.computation:g} % computation and above "
        f"{number_text(reference_point.accuracy)} % accuracy. The best of many on the same "
        "images, it promises too much."
    )


def _importance(record: SweepRecord) -> Iterator[str]:
    ranked = sorted(record.importance.items(), key=lambda item: -item[1])
    if not ranked and record.best and len(record.scales) > 1:
        yield "Which settings matter is not known: too few trials differ in what they came to."
    if ranked:
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked[:_MAX_NAMED])
        n = len(record.trials)
        yield f"What explains the differences in {record.objective.names[0]}, estimated from {n} trials: {told}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    told = ", ".join(names[:_MAX_NAMED])
    return f"{told} and {more} more" if more > 0 else told
