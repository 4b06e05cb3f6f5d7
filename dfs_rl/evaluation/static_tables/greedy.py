"""A greedy search for a static table: lower, again and again, the layer that loses least for what it saves."""

from collections.abc import Iterator

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.static_tables.budget import fits, table_computation
from dfs_rl.evaluation.static_tables.scoring import Table, TableScorer


def greedy_path(scorer: TableScorer, costs: CostTable, cap: float) -> Iterator[Table]:
    """Yield the tables of a greedy descent, from the dearest to the first that fits under a cap.

    Each step lowers one layer by one option: the one whose loss of mean log-likelihood per percent of computation saved is the
    least, the first of equals. The likelihood moves where the accuracy of some hundred images stands still. What a step loses is
    measured anew after each step, on at most ``layers`` tables; sensitivities that are measured once, around full precision, as in
    HAWQ (Dong et al., ICCV 2019), would miss that the errors of layers add up.

    Args:
        scorer: Scores tables on the images to search with.
        costs: What they cost.
        cap: Upper bound on computation in percent; the cheapest table must fit.
    """
    table = (costs.options.full,) * costs.n_layers
    scorer.score([table])
    yield table
    while not fits(costs, table, cap):
        table = _cheapest_loss(table, scorer, costs)
        yield table


def _cheapest_loss(table: Table, scorer: TableScorer, costs: CostTable) -> Table:
    """Return the neighbour one option lower that loses least log-likelihood per percent saved."""
    lowered = [
        (*table[:layer], option - 1, *table[layer + 1 :])
        for layer, option in enumerate(table)
        if option > 0
    ]
    now, before = scorer.scores[table].log_likelihood, table_computation(costs, table)
    scores = scorer.score(lowered)
    losses = [
        (now - score.log_likelihood) / (before - table_computation(costs, neighbour))
        for neighbour, score in zip(lowered, scores, strict=True)
    ]
    return lowered[losses.index(min(losses))]
