"""Groups of runs: seeds of one gate, and points of one curve."""

import itertools
from collections.abc import Callable, Sequence

from dfs_rl.errors import DataError
from dfs_rl.evaluation.comparison_records import EvaluatedRun

BUDGETS = ("budget", "per_input_budget")
_POINT_SETTINGS = (*BUDGETS, "cost_weight", "max_accuracy_drop")
"""Settings that distinguish the points of a gate's curve."""
_IGNORED_SETTINGS = (
    "seed",
    "run_dir",
    "device",
    "threads",
    "dataset",
    "backbone",
    "checkpoint_every",
    "budget_unit",
)
"""Settings that do not distinguish gates: the seed, and settings of where and how a run runs.

Data and backbone are compared by content, and stored budgets are in percent.
"""
Groups = dict[str, list[EvaluatedRun]]
"""Runs by the label of their group."""


def check_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Check that runs can be compared.

    Raises:
        DataError: If images, split, bit options, backbone, cost model or measured times differ.
    """
    properties: dict[str, Callable[[EvaluatedRun], object]] = {
        "image fingerprint": lambda run: run.summary.fingerprint,
        "split": lambda run: run.summary.split,
        "list of bit options": lambda run: list(run.summary.options),
        "backbone digest": lambda run: run.backbone,
        "cost model": lambda run: run.summary.cost_model,
        "latency profile": _latency_profile,
    }
    for run, (name, of) in itertools.product(runs, properties.items()):
        if of(run) != of(runs[0]):
            raise DataError(
                f"{run.path} cannot be compared with {runs[0].path}: its {name} is {of(run)}, not "
                f"{of(runs[0])}."
            )


def _latency_profile(run: EvaluatedRun) -> str:
    timing = run.summary.timing
    if timing is None:
        return "none"
    full = f"{timing.full_milliseconds:.6g} ms in full precision"
    return f"{full}, {timing.conditions}, digest {timing.profile}"


def group_by_gate(runs: Sequence[EvaluatedRun]) -> Groups:
    """Group the runs that differ only in the seed.

    Raises:
        DataError: If a gate has the same seed twice, which would bias the spread over seeds.
    """
    groups = _grouped(runs, _IGNORED_SETTINGS)
    for label, group in groups.items():
        for first, second in itertools.combinations(group, 2):
            seed = second.settings.get("seed")
            if seed == first.settings.get("seed"):
                suffix = "" if seed is None else f", with the same seed {seed}"
                raise DataError(
                    f"{second.path} and {first.path} are the same gate, {label}{suffix}; leave one "
                    "out."
                )
    return groups


def group_by_family(runs: Sequence[EvaluatedRun]) -> Groups:
    """Group the runs that differ only in seed and in budget or cost weight."""
    return _grouped(runs, (*_IGNORED_SETTINGS, *_POINT_SETTINGS))


def point_key(run: EvaluatedRun) -> tuple[str, ...]:
    """Return a key of the point of a curve that a run belongs to."""
    return tuple(repr(run.settings.get(name)) for name in _POINT_SETTINGS)


def _grouped(runs: Sequence[EvaluatedRun], ignored: Sequence[str]) -> Groups:
    """Group the runs that differ only in ``ignored`` settings; None equals a missing setting."""
    groups: dict[tuple[object, ...], list[EvaluatedRun]] = {}
    for run in runs:
        settings = sorted(
            (name, repr(value))
            for name, value in run.settings.items()
            if name not in ignored and value is not None
        )
        groups.setdefault((_kind(run), *settings), []).append(run)
    firsts = [group[0] for group in groups.values()]
    named = {_label(group[0], firsts, ignored): group for group in groups.values()}
    assert len(named) == len(groups), "labels name everything that groups differ in"
    return named


def _kind(run: EvaluatedRun) -> str:
    """Return the name of a gate, told apart from a baseline of the same name."""
    gate, *others = (method.label for method in run.summary.methods)
    return f"{gate} gate" if gate in others else gate


def _label(run: EvaluatedRun, runs: Sequence[EvaluatedRun], ignored: Sequence[str]) -> str:
    """Label a gate by its kind and the settings that differ among gates of that kind."""
    others, parts = [other for other in runs if _kind(other) == _kind(run)], [_kind(run)]
    for name in sorted({name for other in others for name in other.settings} - set(ignored)):
        value = run.settings.get(name)
        if any(other.settings.get(name) != value for other in others):
            text = "default" if value is None else f"{value:g}" if type(value) is float else value
            parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)
