"""What a gate is compared with: baselines that cannot look at the image, or need no learning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import FULL, SKIP, CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.baselines.cascade import cascade_text, choose_cascade, run_cascade
from dfs_rl.evaluation.baselines.early_exit import (
    apply_exit_rule,
    choose_exit_rule,
    run_exit_outputs,
)
from dfs_rl.evaluation.evaluator import BATCH_SIZE, evaluate_draws, evaluate_static_table
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.budget import canonicalize
from dfs_rl.evaluation.static_tables.config import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import StaticTable, static_table_text
from dfs_rl.evaluation.static_tables.search import CachedScores, SearchResult, search_static_table
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.utils.seeding import torch_generator

Role = Literal["gate", "fixed", "matched", "oracle"]

RANDOM_DRAWS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult:
    """One line of a comparison.

    Attributes:
        key: Stable name in files: ``gate``, ``full``, ``uniform_8``, ``mode_table``, ``random``,
            ``patterns``, ``cascade``, ``static_table``, ``exits``, ``oracle``; ``cascade`` and
            ``static_table`` with ``_before`` on the backbone before co-training.
        label: Name in tables and plots.
        role: ``"gate"``; ``"fixed"`` for reference points at a cost of their own; ``"matched"`` for
            baselines made to cost what the gate costs; ``"oracle"`` for what knows the answer and
            is no gate.
        records: One per draw; a single one for everything that draws nothing.
        selection: The same on the selection split, for those that one could ship; None for the
            others.
        chosen_on: Split that its choices were made on, None where there was nothing to choose.
        detail: What was chosen, in words; empty if nothing.
        table: Option index per layer of a static table, None for all else.
        search: How the table was found, None for all but the best static table.
    """

    key: str
    label: str
    role: Role
    records: tuple[GateRecords, ...]
    selection: GateRecords | None = None
    chosen_on: str | None = None
    detail: str = ""
    table: StaticTable | None = None
    search: SearchResult | None = None


def mode_table(options: Tensor, costs: CostTable) -> StaticTable:
    """Return the most frequent action of each layer, the cheaper one of equals, up to where it leaves.

    Args:
        options: Option indices, int64 ``[n, layers]``.
        costs: The backbone's.
    """
    counts = [torch.bincount(column, minlength=costs.n_actions) for column in options.T]
    return canonicalize(costs, tuple(int(count.argmax()) for count in counts))


def shuffled_options(
    options: Tensor, generator: torch.Generator, *, exit_action: int | None = None
) -> Tensor:
    """Deal each layer's options out to the images anew, independently of the other layers.

    How often each layer runs at each option stays exactly what it was, and so does the mean cost;
    what is lost is which image gets which option. int64 ``[n, layers]`` in and out.

    Args:
        options: Option indices.
        generator: Deals.
        exit_action: What stands for having left, ``None`` if no image can. What those that came to
            a layer did there is dealt out to those that come to it now, of whom there are as many.
    """
    rank = torch.rand(options.shape, generator=generator).argsort(dim=0)
    if exit_action is None:
        return options.gather(0, rank)
    shuffled = torch.full_like(options, exit_action)
    arrived = arrived_before = torch.ones(len(options), dtype=torch.bool)
    for layer in range(options.shape[1]):
        order = rank[:, layer]
        shuffled[arrived, layer] = options[order[arrived_before[order]], layer]
        arrived, arrived_before = (
            shuffled[:, layer] != exit_action,
            options[:, layer] != exit_action,
        )
    return shuffled


def shuffled_patterns(options: Tensor, generator: torch.Generator) -> Tensor:
    """Deal whole rows of options out to the images anew.

    The patterns that are used, how often, and the cost all stay exactly what they were; a gate that
    does not look at its image, however it picks its patterns, is as good after this as before.
    int64 ``[n, layers]`` in and out.
    """
    return options[torch.randperm(len(options), generator=generator).to(options.device)]


def uniform_label(bits: int) -> str:
    """Return how tables call a network that runs every layer at ``bits``."""
    if bits == SKIP:
        return "skip all"
    return "full precision" if bits == FULL else f"uniform {bits} bit"


def uniform_baselines(
    backbone: WalkableBackbone,
    reported: ImageSet,
    *,
    selection: ImageSet | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[MethodResult]:
    """Run every option of the menu at all layers, in menu order, on one split or on both."""
    methods = []
    for option, bits in enumerate(backbone.options):
        label = uniform_label(bits)
        table = (option,) * backbone.costs.n_layers
        records, *others = (
            evaluate_static_table(backbone, images, table, name=label, batch_size=batch_size)
            for images in (reported, selection)
            if images is not None
        )
        methods.append(
            MethodResult(
                key="full" if bits == FULL else f"uniform_{bits}",
                label=label,
                role="fixed",
                records=(records,),
                selection=others[0] if others else None,
                table=table,
            )
        )
    return methods


def oracle_baseline(uniform: Sequence[MethodResult]) -> MethodResult:
    """Give every image the cheapest uniform option that classifies it rightly, and the cheapest of all where none does.

    It looks at the labels, so no gate can be like it; it says how much choosing could gain at most,
    uniform bits only.

    Args:
        uniform: Every uniform option on the reported split, in menu order.
    """
    passes = [method.records[0] for method in uniform]
    right = torch.stack([records.correct for records in passes])  # [options, n]
    chosen = right.int().argmax(dim=0)  # the first that is right, 0 if none is
    images = torch.arange(right.shape[1])

    def select(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values))[chosen, images]

    records = GateRecords(
        name="oracle",
        predictions=select([p.predictions for p in passes]),
        labels=passes[0].labels,
        options=select([p.options for p in passes]),
        log_likelihood=select([p.log_likelihood for p in passes]),
        confidence=select([p.confidence for p in passes]),
    )
    return MethodResult(
        key="oracle",
        label="oracle, no gate",
        role="oracle",
        records=(records,),
        detail="for each image the cheapest uniform option that is right, which takes its label to know",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSetup:
    """The ground on which methods compete: the same images and the same rules for all.

    Attributes:
        reported: The split that figures are reported on.
        selection: The split that choices are made on.
        reported_name: What the reported split is called.
        selection_name: What the selection split is called.
        search: How long to search for a static table; None for the defaults.
        batch_size: Images that run together.
        progress: Told what is being done, in a few words.
        cached_scores: Scores of static tables from earlier searches on the same ground, see
            ``search_static_table``; None for none.
    """

    reported: ImageSet
    selection: ImageSet
    reported_name: str
    selection_name: str
    search: SearchConfig | None = None
    batch_size: int = BATCH_SIZE
    progress: Callable[[str], None] = lambda _: None
    cached_scores: CachedScores | None = None


def tuned_baselines(
    backbone: WalkableBackbone,
    evaluation_setup: EvaluationSetup,
    *,
    budget: float,
    initial_tables: Sequence[StaticTable],
    uniform: Sequence[MethodResult],
    before_cotraining: bool = False,
) -> list[MethodResult]:
    """Find and run the best static table and the confidence cascade.

    Both use labels and are chosen on the selection split under ``budget``. There is no cascade
    where not even its first pass keeps to ``budget``.

    Args:
        backbone: The backbone, on the device of both splits.
        evaluation_setup: Images and rules.
        budget: Upper bound on mean computation in percent.
        initial_tables: Tables that the search starts from beside the uniform ones.
        uniform: Every uniform option on both splits, in menu order.
        before_cotraining: Whether this is the backbone as it was before it was trained with the
            gate.
    """
    when = ", before co-training" if before_cotraining else ""
    evaluation_setup.progress(f"cascade{when}, chosen on {evaluation_setup.selection_name}")
    on_selection = [m.selection for m in uniform if m.selection is not None]
    cascade = choose_cascade(on_selection, backbone.costs, budget)

    evaluation_setup.progress(
        f"best static table{when}, searched on {evaluation_setup.selection_name}"
    )
    found = search_static_table(
        backbone,
        evaluation_setup.selection,
        budget,
        initial_tables=initial_tables,
        search=evaluation_setup.search,
        batch_size=evaluation_setup.batch_size,
        cached_scores=None if before_cotraining else evaluation_setup.cached_scores,
    )
    static_records, static_selection = (
        evaluate_static_table(
            backbone,
            images,
            found.table,
            name="best static table",
            batch_size=evaluation_setup.batch_size,
        )
        for images in (evaluation_setup.reported, evaluation_setup.selection)
    )
    suffix = "_before" if before_cotraining else ""
    static_table = MethodResult(
        key=f"static_table{suffix}",
        label=f"best static table{when}",
        role="matched",
        records=(static_records,),
        selection=static_selection,
        chosen_on=evaluation_setup.selection_name,
        detail=f"bits {static_table_text(found.table, backbone.options)}",
        table=found.table,
        search=found,
    )
    if cascade is None:
        return [static_table]
    cascade_records = run_cascade([m.records[0] for m in uniform], cascade)
    return [
        static_table,
        MethodResult(
            key=f"cascade{suffix}",
            label=f"confidence cascade{when}",
            role="matched",
            records=(cascade_records,),
            selection=run_cascade(on_selection, cascade),
            chosen_on=evaluation_setup.selection_name,
            detail=cascade_text(cascade, cascade_records, backbone.options),
        ),
    ]


def matched_cost_baselines(
    backbone: WalkableBackbone,
    evaluation_setup: EvaluationSetup,
    *,
    gate: GateRecords,
    gate_selection: GateRecords,
    uniform: Sequence[MethodResult],
    before_cotraining: WalkableBackbone | None = None,
) -> list[MethodResult]:
    """Run every baseline at the gate's cost: best static table, cascade, confidence exits, mode table, shuffled options.

    The static table, the cascade and the exits are chosen on the selection split under the gate's
    mean computation there and its ``with_cost_tolerance``: all of them the same, since a gate
    counts as costing no more than a baseline within it. The mode table and the shuffles take their
    options from the gate on the reported split, which needs no label, so that their marginals are
    the very ones they are compared with.

    Args:
        backbone: The backbone, on the device of both splits.
        evaluation_setup: Images and rules.
        gate: The gate's records on the reported split.
        gate_selection: The gate's records on the selection split.
        uniform: Every uniform option on both splits, in menu order.
        before_cotraining: The backbone as it was before it was trained with the gate, None if it
            was not. Training under the gate makes a backbone worse at what the gate does not
            choose, so baselines need the one from before as well.
    """
    budget = with_cost_tolerance(gate_selection.computation(backbone.costs).mean().item())
    costs = backbone.costs
    initial_tables = [mode_table(gate_selection.options, costs)]
    searched = tuned_baselines(
        backbone, evaluation_setup, budget=budget, initial_tables=initial_tables, uniform=uniform
    )
    if costs.exits:
        searched.append(confidence_exits_baseline(backbone, evaluation_setup, budget=budget))
    if before_cotraining is not None:
        uniform_before = uniform_baselines(
            before_cotraining,
            evaluation_setup.reported,
            selection=evaluation_setup.selection,
            batch_size=evaluation_setup.batch_size,
        )
        searched += tuned_baselines(
            before_cotraining,
            evaluation_setup,
            budget=budget,
            initial_tables=initial_tables,
            uniform=uniform_before,
            before_cotraining=True,
        )

    if gate.first_pass is not None:
        # What runs some images twice has no mode table or marginals of the same cost: those are of one pass.
        return searched
    evaluation_setup.progress("mode table and shuffled options")
    mode = mode_table(gate.options, costs)
    mode_records = evaluate_static_table(
        backbone,
        evaluation_setup.reported,
        mode,
        name="mode table",
        batch_size=evaluation_setup.batch_size,
    )
    exit_action = costs.exit_action if costs.exits else None
    shuffles: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "random": partial(shuffled_options, exit_action=exit_action),
        "patterns": shuffled_patterns,
    }
    draws = {
        key: evaluate_draws(
            backbone,
            evaluation_setup.reported,
            [
                shuffle(gate.options, torch_generator(f"{key} baseline", draw))
                for draw in range(RANDOM_DRAWS)
            ],
            name=key,
            batch_size=evaluation_setup.batch_size,
        )
        for key, shuffle in shuffles.items()
    }
    return [
        *searched,
        MethodResult(
            key="mode_table",
            label="mode table",
            role="matched",
            records=(mode_records,),
            chosen_on=evaluation_setup.reported_name,
            detail=f"bits {static_table_text(mode, backbone.options)}",
            table=mode,
        ),
        MethodResult(
            key="random",
            label="random, same marginals",
            role="matched",
            records=draws["random"],
            chosen_on=evaluation_setup.reported_name,
            detail=f"mean of {RANDOM_DRAWS} draws",
        ),
        MethodResult(
            key="patterns",
            label="own patterns, shuffled",
            role="matched",
            records=draws["patterns"],
            chosen_on=evaluation_setup.reported_name,
            detail=f"mean of {RANDOM_DRAWS} draws",
        ),
    ]


def confidence_exits_baseline(
    backbone: WalkableBackbone, evaluation_setup: EvaluationSetup, *, budget: float
) -> MethodResult:
    """Find and run the best rule by which images leave when an exit is sure, chosen on the selection split under ``budget``.

    Args:
        backbone: A backbone with exits, on the device of both splits.
        evaluation_setup: Images and rules.
        budget: Upper bound on mean computation in percent.
    """
    evaluation_setup.progress(f"confidence exits, chosen on {evaluation_setup.selection_name}")
    costs = backbone.costs
    reported, selection = (
        run_exit_outputs(backbone, images, batch_size=evaluation_setup.batch_size)
        for images in (evaluation_setup.reported, evaluation_setup.selection)
    )
    rule = choose_exit_rule(selection, costs, budget)
    return MethodResult(
        key="exits",
        label="confidence exits",
        role="matched",
        records=(apply_exit_rule(reported, rule, costs),),
        selection=apply_exit_rule(selection, rule, costs),
        chosen_on=evaluation_setup.selection_name,
        detail=rule.description(costs),
    )
