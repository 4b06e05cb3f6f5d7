"""Baselines of every gate, registered in the order of tables and files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dfs_rl.backbones.base import Backbone
from dfs_rl.costs import CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.baselines.early_exit import apply_exit_rule, choose_exit_rule, run_exits
from dfs_rl.evaluation.baselines.registry import (
    Baseline,
    EvaluationSetup,
    MethodResult,
    register_baseline,
)
from dfs_rl.evaluation.baselines.shuffles import (
    ReplayGate,
    Shuffle,
    decisions_of,
    shuffle_decisions,
    shuffle_patterns,
)
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.evaluator import evaluate_draws, evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.records import choose_records
from dfs_rl.evaluation.rule_search import best_rule
from dfs_rl.evaluation.static_tables.scoring import StaticTable, canonicalize, static_table_text
from dfs_rl.evaluation.static_tables.search import search_static_table
from dfs_rl.gating.passes import PassSettings
from dfs_rl.utils.seeding import torch_generator

RANDOM_DRAWS = 5
_CASCADE = PassSettings(limit=2, answer="last")
"""Passes of a cascade: a cheap one for all images, a dear one for unsure answers."""


@register_baseline("uniform")
def _uniform(setup: EvaluationSetup) -> Sequence[MethodResult]:
    """Run each bit option at all layers."""
    return setup.uniform


@register_baseline("static_table")
def _static_table(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Search for the best static bit table within the cost of the gate."""
    table, search = search_static_table(
        setup.backbone,
        setup.selection,
        setup.budget,
        initial_tables=[mode_table(setup.gate_selection.options, setup.backbone.costs)],
        search=setup.search,
        batch_size=setup.batch_size,
        cached_scores=setup.cached_scores,
    )
    result, selection = (
        _table_result(setup, images, table, "static_table", "best static table")
        for images in (setup.reported, setup.selection)
    )
    yield replace(
        result, selection=selection.records[0], chosen_on=setup.selection_name, search=search
    )


def _table_result(
    setup: EvaluationSetup, images: ImageSet, table: StaticTable, key: str, label: str
) -> MethodResult:
    records = evaluate_static_table(
        setup.backbone, images, table, name=label, batch_size=setup.batch_size
    )
    detail = f"bits {static_table_text(table, setup.backbone.options)}"
    return MethodResult(key=key, label=label, records=(records,), detail=detail, table=table)


@register_baseline("cascade")
def _cascade(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Choose the best cascade within the cost of the gate."""
    return _threshold_rule(setup, _CASCADE, key="cascade", label="cascade")


def _has_own_passes(setup: EvaluationSetup) -> bool:
    return setup.passes.limit > 1 and setup.passes != _CASCADE


@register_baseline("tuned_rule", applies=_has_own_passes)
def _tuned_rule(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Choose the best rule over the passes that the gate has, within its cost."""
    return _threshold_rule(setup, setup.passes, key="tuned_rule", label="best tuned rule")


def _threshold_rule(
    setup: EvaluationSetup, passes: PassSettings, *, key: str, label: str
) -> Iterator[MethodResult]:
    """Choose the best rule over passes; none if none is within the budget."""
    selection = setup.outputs("selection", mirrored=passes.mirrored)
    found = best_rule(selection, setup.backbone.costs, setup.budget, passes)
    if found is not None:
        rule = found.rule
        reported = setup.outputs("reported", mirrored=passes.mirrored)
        yield MethodResult(
            key=key,
            label=label,
            records=(reported.records(rule, passes.answer, name=key),),
            selection=selection.records(rule, passes.answer, name=key),
            chosen_on=setup.selection_name,
            detail=rule.description(setup.backbone.options),
        )


@register_baseline("exits", applies=lambda setup: bool(setup.backbone.costs.exits))
def _exits(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Choose the best rule within the cost of the gate by which confident images exit."""
    costs = setup.backbone.costs
    reported, selection = (
        run_exits(setup.backbone, images, batch_size=setup.batch_size)
        for images in (setup.reported, setup.selection)
    )
    rule = choose_exit_rule(selection, costs, setup.budget)
    yield MethodResult(
        key="exits",
        label="confidence exits",
        records=(apply_exit_rule(reported, rule, costs),),
        selection=apply_exit_rule(selection, rule, costs),
        chosen_on=setup.selection_name,
        detail=rule.description(costs),
    )


def _is_cotrained(setup: EvaluationSetup) -> bool:
    return setup.before_cotraining is not None


def _before_cotraining(baseline: Baseline, setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Run a baseline on the backbone before co-training."""
    assert setup.before_cotraining is not None, "the baseline applies"
    earlier = replace(setup, backbone=setup.before_cotraining, cached_scores={}, cached_outputs={})
    for method in baseline(earlier):
        label = f"{method.label}, before co-training"
        yield replace(method, key=f"{method.key}_before", label=label)


register_baseline("static_table_before", applies=_is_cotrained)(
    partial(_before_cotraining, _static_table)
)
register_baseline("cascade_before", applies=_is_cotrained)(partial(_before_cotraining, _cascade))
register_baseline(
    "tuned_rule_before", applies=lambda setup: _is_cotrained(setup) and _has_own_passes(setup)
)(partial(_before_cotraining, _tuned_rule))


# One table cannot stand for several passes.
@register_baseline("mode_table", applies=lambda setup: setup.gate.earlier is None)
def _mode_table(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Run the most frequent option of the gate at each layer."""
    table = mode_table(setup.gate.options, setup.backbone.costs)
    result = _table_result(setup, setup.reported, table, "mode_table", "mode table")
    yield replace(result, chosen_on=setup.reported_name)


def _shuffled(
    setup: EvaluationSetup, shuffle: Shuffle, about: str, key: str, label: str
) -> MethodResult:
    backbone, images, batch_size = setup.backbone, setup.reported, setup.batch_size
    draws = [
        shuffle(decisions_of(setup.gate), torch_generator(f"{key} baseline", draw), backbone.costs)
        for draw in range(RANDOM_DRAWS)
    ]
    if setup.gate.earlier is None:
        options = [options[:, 0] for options, _ in draws]
        records = evaluate_draws(backbone, images, options, name=key, batch_size=batch_size)
    else:
        gates = (ReplayGate(draw, answer=setup.passes.answer, name=key) for draw in draws)
        records = tuple(
            evaluate_gate(backbone, gate, images, batch_size=batch_size) for gate in gates
        )
    detail = f"{about}, mean of {RANDOM_DRAWS} draws"
    return MethodResult(
        key=key, label=label, records=records, chosen_on=setup.reported_name, detail=detail
    )


@register_baseline("random")
def _random(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Shuffle the options of each layer across images."""
    about = "each layer's options of the gate on random images"
    yield _shuffled(setup, shuffle_decisions, about, "random", "random, same marginals")


@register_baseline("patterns")
def _patterns(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Shuffle all decisions of an image together across images."""
    about = "the gate's options of whole images on random images"
    yield _shuffled(setup, shuffle_patterns, about, "patterns", "own patterns, shuffled")


@register_baseline("oracle")
def _oracle(setup: EvaluationSetup) -> Iterator[MethodResult]:
    """Take the cheapest correct uniform option of each image, the cheapest of all if none is.

    It needs the labels, so no gate can match it: it bounds the gain of choosing uniform bits.
    """
    costs, passes = setup.backbone.costs, [method.records[0] for method in setup.uniform]
    passes.sort(key=lambda records: records.computation(costs).mean().item())  # times may fall
    correct = torch.stack([records.correct for records in passes])  # [options, n]
    chosen = correct.int().argmax(dim=0)  # the first correct option, 0 if there is none
    yield MethodResult(
        key="oracle",
        label="oracle, no gate",
        role="oracle",
        records=(choose_records(passes, chosen, "oracle"),),
        detail="for each image the cheapest uniform option that is correct, by its label",
    )


def uniform_points(backbone: Backbone, accuracies: Mapping[str, float]) -> list[CurvePoint]:
    """Return computation and accuracy of each uniform option, given its accuracy by its bits."""
    costs = backbone.costs
    settings = [torch.full((1, costs.n_layers), costs.options.index(int(b))) for b in accuracies]
    computations = [costs.computation(options).item() for options in settings]
    return list(map(CurvePoint, computations, accuracies.values()))


def mode_table(options: Tensor, costs: CostTable) -> StaticTable:
    """Return the most frequent action of each layer, the cheaper one of equals."""
    counts = [torch.bincount(column, minlength=costs.n_actions) for column in options.T]
    return canonicalize(costs, tuple(int(count.argmax()) for count in counts))
