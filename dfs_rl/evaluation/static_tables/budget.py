"""Static tables under a cap on computation: what a table costs, whether it fits, and two ways to lower one until it does."""

import torch

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.static_tables.scoring import Table

_TOLERANCE = 1e-9
"""Percent; sums of the same costs in another order must not decide whether a table fits."""


def table_computation(costs: CostTable, table: Table) -> float:
    """Return what a table costs in percent, fixed parts included and without a gate."""
    return float(costs.computation(torch.tensor([table])))


def closed(costs: CostTable, table: Table) -> Table:
    """Return a table as what images do by it, see ``CostTable.closed``."""
    return tuple(costs.closed(torch.tensor(table)).tolist()) if costs.exits else table


def fits(costs: CostTable, table: Table, cap: float) -> bool:
    """Say whether a table costs at most ``cap`` percent."""
    return table_computation(costs, table) <= cap + _TOLERANCE


def cheapest_table(costs: CostTable) -> Table:
    """Return the cheapest table: the cheapest option at every layer, up to the exit by which that costs least."""
    ways = [
        (0,) * after + (costs.exit_action,) * (costs.n_layers - after)
        for after in (*costs.exits_after, costs.n_layers)
    ]
    return min(ways, key=lambda table: table_computation(costs, table))


def lower_dearest_first(table: Table, costs: CostTable, cap: float) -> Table:
    """Lower, one option at a time, the layer that saves most until a table fits under a cap.

    Args:
        table: Option index of each layer.
        costs: What they cost.
        cap: Upper bound on computation in percent; the cheapest table must fit. It is returned where lowering options is not enough.
    """
    cheapest = cheapest_table(costs)
    assert fits(costs, cheapest, cap), "or there would be no end"
    price = costs.option_costs()
    current = list(closed(costs, table))
    while not fits(costs, tuple(current), cap):
        savings = [
            float(price[layer, option] - price[layer, option - 1])
            if 0 < option <= costs.options.full
            else -1.0
            for layer, option in enumerate(current)
        ]
        if max(savings) < 0:
            return cheapest
        current[savings.index(max(savings))] -= 1
    return tuple(current)


def lower_last_first(table: Table, costs: CostTable, cap: float) -> Table:
    """Lower layer after layer by one option, from the last to the first and round again, until a table fits under a cap.

    The rule of HAQ (Wang et al., CVPR 2019, section 3.2), which keeps the earlier layers at what they were given.

    Args:
        table: Option index of each layer.
        costs: What they cost.
        cap: Upper bound on computation in percent; the cheapest table must fit.
    """
    assert fits(costs, (0,) * len(table), cap), "or there would be no end"
    current = list(table)
    layer = len(current)
    while not fits(costs, tuple(current), cap):
        layer = (layer or len(current)) - 1
        current[layer] = max(0, current[layer] - 1)
    return tuple(current)
