"""Static bit tables that cost less than the cheapest uniform one: they skip layers, or exit."""

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import SKIP
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScorer,
    evenly_spaced_subset,
    static_table_computation,
)

_IMAGES = 1000
"""Number of images that score each table."""
_MOST = 3
"""Largest number of tables: the search for rules grows with the third power of the settings."""


def shortened_tables(backbone: GatedBackbone, image_set: ImageSet) -> list[StaticTable]:
    """Return tables that skip layers or exit, and run all others at the cheapest bit width.

    Layers are skipped one after the other, first those that lose least log-likelihood per cost
    saved if they alone are skipped (as HAWQ lowers bits, Dong et al., ICCV 2019). An image exits
    after all layers before the exit. Tables with less than half the accuracy of the cheapest bit
    width, and those that a cheaper one equals, are left out.

    Args:
        backbone: The network, on the device of the images.
        image_set: Images to score tables on; 1,000 of them are used.

    Returns:
        At most three tables, in ascending order of cost.
    """
    costs = backbone.costs
    bits = list(costs.options)
    (lowest, *_) = (option for option, width in enumerate(bits) if width != SKIP)
    whole = (lowest,) * costs.n_layers
    scorer = StaticTableScorer(backbone, evenly_spaced_subset(image_set, _IMAGES))

    def cost(table: StaticTable) -> float:
        return static_table_computation(costs, table)

    (usual,) = scorer.score([whole])
    tables = [
        whole[:after] + (costs.exit_action,) * (costs.n_layers - after)
        for after in costs.exits_after
    ]
    if SKIP in bits:
        skip = bits.index(SKIP)

        def without(layers: list[int]) -> StaticTable:
            return tuple(skip if i in layers else lowest for i in range(costs.n_layers))

        lost = {}
        for layer in range(costs.n_layers):
            saved = cost(whole) - cost(without([layer]))
            if saved > 0:  # measured times may not fall
                (alone,) = scorer.score([without([layer])])
                lost[layer] = (usual.log_likelihood - alone.log_likelihood) / saved
        order = sorted(lost, key=lost.__getitem__)
        tables += [without(order[:n]) for n in range(1, len(order) + 1)]
    scores = dict(zip(tables, scorer.score(tables), strict=True))
    front: list[StaticTable] = []
    for table in sorted(scores, key=cost):
        better = not front or scores[table] > scores[front[-1]]
        if better and cost(table) < cost(whole) and 2 * scores[table].correct > usual.correct:
            front.append(table)
    if len(front) <= _MOST:
        return front
    return [front[round(n * (len(front) - 1) / (_MOST - 1))] for n in range(_MOST)]
