"""A greedy search for a static table: lower, again and again, the layer that loses least for what it saves."""

from collections.abc import Iterator

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.static_tables.budget import is_within_budget, static_table_computation
from dfs_rl.evaluation.static_tables.scoring import StaticTable, StaticTableScorer


def greedy_path(
    scorer: StaticTableScorer, costs: CostTable, budget: float
) -> Iterator[StaticTable]:
    """Yield the tables of a greedy descent, from the most expensive to the first within a budget.

    Each step lowers one layer by one option: the one whose loss of mean log-likelihood per percent
    of computation saved is the least, the first of equals. The likelihood moves where the accuracy
    of some hundred images stands still. What a step loses is measured anew after each step, on at
    most ``layers`` tables; sensitivities that are measured once, around full precision, as in HAWQ
    (Dong et al., ICCV 2019), would miss that the errors of layers add up.

    Args:
        scorer: Scores tables on the images to search with.
        costs: What they cost.
        budget: Upper bound on computation in percent; the cheapest table must fit.
    """
    table = (costs.options.full,) * costs.n_layers
    scorer.score([table])
    yield table
    while not is_within_budget(costs, table, budget):
        table = _best_downgrade(table, scorer, costs)
        yield table


def _best_downgrade(table: StaticTable, scorer: StaticTableScorer, costs: CostTable) -> StaticTable:
    """Return the neighbour one option lower that loses least log-likelihood per percent saved."""
    neighbours = [
        (*table[:layer], option - 1, *table[layer + 1 :])
        for layer, option in enumerate(table)
        if option > 0
    ]
    now, before = scorer.scores[table].log_likelihood, static_table_computation(costs, table)
    scores = scorer.score(neighbours)
    losses = [
        (now - score.log_likelihood) / (before - static_table_computation(costs, neighbour))
        for neighbour, score in zip(neighbours, scores, strict=True)
    ]
    return neighbours[losses.index(min(losses))]
