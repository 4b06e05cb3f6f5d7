"""Static bit tables that cost less than the cheapest uniform one: they skip layers, or exit."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from dfs_rl.backbones.interfaces import GatedBackbone, WithStages
from dfs_rl.costs import SKIP, CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScorer,
    evenly_spaced_subset,
    exit_tables,
    losses_per_saving,
    static_table_computation,
)

_IMAGES = 1000  # number of images that score each table
_MOST = 3
"""Largest number of tables: the search for rules grows with the third power of the settings."""


def shortened_tables(backbone: GatedBackbone, image_set: ImageSet) -> list[StaticTable]:
    """Return tables that skip layers or exit, and run all others at the cheapest bit width.

    Layers are skipped one after the other, first those that lose least log-likelihood per cost
    saved if they alone are skipped (as HAWQ lowers bits, Dong et al., ICCV 2019); and from the ends
    of stages, first where that loses least, down to one layer each. An image exits after all layers
    before the exit. Tables with less than three quarters of the accuracy of the cheapest bit width,
    and those that another one equals at no larger cost, are left out.

    The tables, at most three, are in ascending order of cost. 1,000 of the images score them.
    """
    costs = backbone.costs
    bits = list(costs.options)
    (lowest, *_) = (option for option, width in enumerate(bits) if width != SKIP)
    whole = (lowest,) * costs.n_layers
    scorer = StaticTableScorer(backbone, evenly_spaced_subset(image_set, _IMAGES))
    tables = exit_tables(costs, whole)
    if SKIP in bits:
        skip = bits.index(SKIP)
        tables += _in_order_of_sensitivity(scorer, costs, whole, skip)
        if isinstance(backbone, WithStages):
            tables += _from_ends_of_stages(scorer, costs, whole, skip, backbone.stages)

    def cost(table: StaticTable) -> float:
        return static_table_computation(costs, table)

    scores = dict(zip(tables, scorer.score(tables), strict=True))
    (usual,) = scorer.score([whole])
    front: list[StaticTable] = []
    for table in sorted(scores, key=lambda t: (round(cost(t), 9), *(-x for x in scores[t]))):
        better = not front or scores[table] > scores[front[-1]]
        if better and cost(table) < cost(whole) and 4 * scores[table].correct > 3 * usual.correct:
            front.append(table)
    if len(front) <= _MOST:
        return front
    return [front[round(n * (len(front) - 1) / (_MOST - 1))] for n in range(_MOST)]


def _in_order_of_sensitivity(
    scorer: StaticTableScorer, costs: CostTable, whole: StaticTable, skip: int
) -> Iterator[StaticTable]:
    """Yield tables with one skipped layer, two and so on, the least sensitive first."""
    alone = [_without(whole, [layer], skip) for layer in range(len(whole))]
    losses = losses_per_saving(scorer, costs, whole, alone)
    skipped: list[int] = []
    for table in sorted(losses, key=losses.__getitem__):
        skipped.append(table.index(skip))
        yield _without(whole, skipped, skip)


def _from_ends_of_stages(
    scorer: StaticTableScorer,
    costs: CostTable,
    whole: StaticTable,
    skip: int,
    stages: Sequence[int],
) -> Iterator[StaticTable]:
    """Yield tables whose stages lose their last layer, one stage after the other."""
    ends = list(accumulate(stages))
    last, table = list(ends), whole  # of each stage, one behind the last layer that runs
    while True:
        shorter = {
            _without(table, [last[i] - 1], skip): i
            for i, end in enumerate(ends)
            if last[i] > end - stages[i] + 1
        }
        losses = losses_per_saving(scorer, costs, table, list(shorter))
        if not losses:
            return
        table = min(losses, key=losses.__getitem__)
        last[shorter[table]] -= 1
        yield table


def _without(table: StaticTable, layers: Sequence[int], skip: int) -> StaticTable:
    return tuple(skip if i in layers else option for i, option in enumerate(table))
