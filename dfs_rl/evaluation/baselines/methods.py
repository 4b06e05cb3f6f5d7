"""What a gate is compared with: rivals that cannot look at the image, or need no learning."""

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
from dfs_rl.evaluation.baselines.early_exit import choose_exits, exit_passes, run_exits
from dfs_rl.evaluation.evaluator import BATCH_SIZE, evaluate_draws, evaluate_table
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.static_tables.budget import closed
from dfs_rl.evaluation.static_tables.config import SearchLimits
from dfs_rl.evaluation.static_tables.scoring import Table, table_text
from dfs_rl.evaluation.static_tables.search import KnownScores, SearchResult, search_static_table
from dfs_rl.evaluation.verdict import room
from dfs_rl.utils.seeding import torch_generator

Role = Literal["gate", "fixed", "matched", "oracle"]

RANDOM_DRAWS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """One line of a comparison.

    Attributes:
        key: Stable name in files: ``gate``, ``full``, ``uniform_8``, ``mode_table``, ``random``,
            ``patterns``, ``cascade``, ``static_table``, ``exits``, ``oracle``; ``cascade`` and ``static_table`` with
            ``_before`` on the backbone before co-training.
        label: Name in tables and plots.
        role: ``"gate"``; ``"fixed"`` for reference points at a cost of their own; ``"matched"`` for
            rivals made to cost what the gate costs; ``"oracle"`` for what knows the answer and is no gate.
        records: One per draw; a single one for everything that draws nothing.
        selection: The same on the selection split, for those that one could ship; None for the others.
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
    table: Table | None = None
    search: SearchResult | None = None


def mode_table(options: Tensor, costs: CostTable) -> Table:
    """Return the most frequent action of each layer, the cheaper one of equals, up to where it leaves.

    Args:
        options: Option indices, int64 ``[n, layers]``.
        costs: The backbone's.
    """
    counts = [torch.bincount(column, minlength=costs.n_actions) for column in options.T]
    return closed(costs, tuple(int(count.argmax()) for count in counts))


def shuffled_options(
    options: Tensor, generator: torch.Generator, *, exit_action: int | None = None
) -> Tensor:
    """Deal each layer's options out to the images anew, independently of the other layers.

    How often each layer runs at each option stays exactly what it was, and so does the mean cost;
    what is lost is which image gets which option. int64 ``[n, layers]`` in and out.

    Args:
        options: Option indices.
        generator: Deals.
        exit_action: What stands for having left, ``None`` if no image can. What those that came to a layer did there is dealt out to
            those that come to it now, of whom there are as many.
    """
    rank = torch.rand(options.shape, generator=generator).argsort(dim=0)
    if exit_action is None:
        return options.gather(0, rank)
    dealt = torch.full_like(options, exit_action)
    come = came = torch.ones(len(options), dtype=torch.bool)
    for layer in range(options.shape[1]):
        order = rank[:, layer]
        dealt[come, layer] = options[order[came[order]], layer]
        come, came = dealt[:, layer] != exit_action, options[:, layer] != exit_action
    return dealt


def shuffled_patterns(options: Tensor, generator: torch.Generator) -> Tensor:
    """Deal whole rows of options out to the images anew.

    The patterns that are used, how often, and the cost all stay exactly what they were; a gate that does not look at its
    image, however it picks its patterns, is as good after this as before. int64 ``[n, layers]`` in and out.
    """
    return options[torch.randperm(len(options), generator=generator).to(options.device)]


def uniform_label(bits: int) -> str:
    """Return how tables call a network that runs every layer at ``bits``."""
    if bits == SKIP:
        return "skip all"
    return "full precision" if bits == FULL else f"uniform {bits} bit"


def uniform_methods(
    backbone: WalkableBackbone,
    reported: ImageSet,
    *,
    selection: ImageSet | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Method]:
    """Run every option of the menu at all layers, in menu order, on one split or on both."""
    methods = []
    for option, bits in enumerate(backbone.options):
        label = uniform_label(bits)
        table = (option,) * backbone.costs.n_layers
        records, *others = (
            evaluate_table(backbone, images, table, name=label, batch_size=batch_size)
            for images in (reported, selection)
            if images is not None
        )
        methods.append(
            Method(
                key="full" if bits == FULL else f"uniform_{bits}",
                label=label,
                role="fixed",
                records=(records,),
                selection=others[0] if others else None,
                table=table,
            )
        )
    return methods


def oracle_method(uniform: Sequence[Method]) -> Method:
    """Give every image the cheapest uniform option that classifies it rightly, and the cheapest of all where none does.

    It looks at the labels, so no gate can be like it; it says how much choosing could gain at most, uniform bits only.

    Args:
        uniform: Every uniform option on the reported split, in menu order.
    """
    passes = [method.records[0] for method in uniform]
    right = torch.stack([records.correct for records in passes])  # [options, n]
    chosen = right.int().argmax(dim=0)  # the first that is right, 0 if none is
    images = torch.arange(right.shape[1])

    def picked(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values))[chosen, images]

    records = GateRecords(
        name="oracle",
        predictions=picked([p.predictions for p in passes]),
        labels=passes[0].labels,
        options=picked([p.options for p in passes]),
        log_likelihood=picked([p.log_likelihood for p in passes]),
        confidence=picked([p.confidence for p in passes]),
    )
    return Method(
        key="oracle",
        label="oracle, no gate",
        role="oracle",
        records=(records,),
        detail="for each image the cheapest uniform option that is right, which takes its label to know",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Arena:
    """The ground on which methods compete: the same images and the same rules for all.

    Attributes:
        reported: The split that figures are reported on.
        selection: The split that choices are made on.
        reported_name: What the reported split is called.
        selection_name: What the selection split is called.
        limits: How long to search for a static table; None for the defaults.
        batch_size: Images that run together.
        progress: Told what is being done, in a few words.
        known: Scores of static tables from earlier searches on the same ground, see ``search_static_table``; None for none.
    """

    reported: ImageSet
    selection: ImageSet
    reported_name: str
    selection_name: str
    limits: SearchLimits | None = None
    batch_size: int = BATCH_SIZE
    progress: Callable[[str], None] = lambda _: None
    known: KnownScores | None = None


def searched_methods(
    backbone: WalkableBackbone,
    arena: Arena,
    *,
    cap: float,
    starts: Sequence[Table],
    uniform: Sequence[Method],
    before: bool = False,
) -> list[Method]:
    """Find and run the best static table and the confidence cascade.

    Both use labels and are chosen on the selection split under ``cap``. There is no cascade where not even its first pass keeps to
    ``cap``.

    Args:
        backbone: The backbone, on the device of both splits.
        arena: Images and rules.
        cap: Upper bound on mean computation in percent.
        starts: Tables that the search starts from beside the uniform ones.
        uniform: Every uniform option on both splits, in menu order.
        before: Whether this is the backbone as it was before it was trained with the gate.
    """
    when = ", before co-training" if before else ""
    arena.progress(f"cascade{when}, chosen on {arena.selection_name}")
    on_selection = [m.selection for m in uniform if m.selection is not None]
    cascade = choose_cascade(on_selection, backbone.costs, cap)

    arena.progress(f"best static table{when}, searched on {arena.selection_name}")
    found = search_static_table(
        backbone,
        arena.selection,
        cap,
        starts=starts,
        limits=arena.limits,
        batch_size=arena.batch_size,
        known=None if before else arena.known,
    )
    static_records, static_selection = (
        evaluate_table(
            backbone, images, found.table, name="best static table", batch_size=arena.batch_size
        )
        for images in (arena.reported, arena.selection)
    )
    suffix = "_before" if before else ""
    static_table = Method(
        key=f"static_table{suffix}",
        label=f"best static table{when}",
        role="matched",
        records=(static_records,),
        selection=static_selection,
        chosen_on=arena.selection_name,
        detail=f"bits {table_text(found.table, backbone.options)}",
        table=found.table,
        search=found,
    )
    if cascade is None:
        return [static_table]
    cascade_records = run_cascade([m.records[0] for m in uniform], cascade)
    return [
        static_table,
        Method(
            key=f"cascade{suffix}",
            label=f"confidence cascade{when}",
            role="matched",
            records=(cascade_records,),
            selection=run_cascade(on_selection, cascade),
            chosen_on=arena.selection_name,
            detail=cascade_text(cascade, cascade_records, backbone.options),
        ),
    ]


def rival_methods(
    backbone: WalkableBackbone,
    arena: Arena,
    *,
    gate: GateRecords,
    gate_selection: GateRecords,
    uniform: Sequence[Method],
    before: WalkableBackbone | None = None,
) -> list[Method]:
    """Run every rival at the gate's cost: best static table, cascade, confidence exits, mode table, shuffled options.

    The static table, the cascade and the exits are chosen on the selection split under the gate's mean computation there and its
    ``room``: all of them the same, since a gate counts as no dearer than a baseline within it. The mode table and the shuffles take
    their options from the gate on the reported split, which needs no label, so that their marginals are the very ones they are
    compared with.

    Args:
        backbone: The backbone, on the device of both splits.
        arena: Images and rules.
        gate: The gate's records on the reported split.
        gate_selection: The gate's records on the selection split.
        uniform: Every uniform option on both splits, in menu order.
        before: The backbone as it was before it was trained with the gate, None if it was not. Training under the gate makes
            a backbone worse at what the gate does not choose, so rivals need the one from before as well.
    """
    cap = room(gate_selection.computation(backbone.costs).mean().item())
    costs = backbone.costs
    starts = [mode_table(gate_selection.options, costs)]
    searched = searched_methods(backbone, arena, cap=cap, starts=starts, uniform=uniform)
    if costs.exits:
        searched.append(exits_method(backbone, arena, cap=cap))
    if before is not None:
        then = uniform_methods(
            before, arena.reported, selection=arena.selection, batch_size=arena.batch_size
        )
        searched += searched_methods(
            before,
            arena,
            cap=cap,
            starts=starts,
            uniform=then,
            before=True,
        )

    if gate.first_pass is not None:
        # What runs some images twice has no mode table or marginals of the same cost: those are of one pass.
        return searched
    arena.progress("mode table and shuffled options")
    mode = mode_table(gate.options, costs)
    mode_records = evaluate_table(
        backbone, arena.reported, mode, name="mode table", batch_size=arena.batch_size
    )
    leaving = costs.exit_action if costs.exits else None
    shuffles: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "random": partial(shuffled_options, exit_action=leaving),
        "patterns": shuffled_patterns,
    }
    draws = {
        key: evaluate_draws(
            backbone,
            arena.reported,
            [
                shuffle(gate.options, torch_generator(f"{key} baseline", draw))
                for draw in range(RANDOM_DRAWS)
            ],
            name=key,
            batch_size=arena.batch_size,
        )
        for key, shuffle in shuffles.items()
    }
    return [
        *searched,
        Method(
            key="mode_table",
            label="mode table",
            role="matched",
            records=(mode_records,),
            chosen_on=arena.reported_name,
            detail=f"bits {table_text(mode, backbone.options)}",
            table=mode,
        ),
        Method(
            key="random",
            label="random, same marginals",
            role="matched",
            records=draws["random"],
            chosen_on=arena.reported_name,
            detail=f"mean of {RANDOM_DRAWS} draws",
        ),
        Method(
            key="patterns",
            label="own patterns, shuffled",
            role="matched",
            records=draws["patterns"],
            chosen_on=arena.reported_name,
            detail=f"mean of {RANDOM_DRAWS} draws",
        ),
    ]


def exits_method(backbone: WalkableBackbone, arena: Arena, *, cap: float) -> Method:
    """Find and run the best rule by which images leave when an exit is sure, chosen on the selection split under ``cap``.

    Args:
        backbone: A backbone with exits, on the device of both splits.
        arena: Images and rules.
        cap: Upper bound on mean computation in percent.
    """
    arena.progress(f"confidence exits, chosen on {arena.selection_name}")
    costs = backbone.costs
    reported, selection = (
        exit_passes(backbone, images, batch_size=arena.batch_size)
        for images in (arena.reported, arena.selection)
    )
    rule = choose_exits(selection, costs, cap)
    return Method(
        key="exits",
        label="confidence exits",
        role="matched",
        records=(run_exits(reported, rule, costs),),
        selection=run_exits(selection, rule, costs),
        chosen_on=arena.selection_name,
        detail=rule.words(costs),
    )
