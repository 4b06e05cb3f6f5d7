"""Static tables under a budget on computation: what a table costs, whether it fits, and two ways to lower one until it does."""

import torch

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.static_tables.scoring import StaticTable

_TOLERANCE = 1e-9
"""Percent; sums of the same costs in another order must not decide whether a table fits."""


def static_table_computation(costs: CostTable, table: StaticTable) -> float:
    """Return what a table costs in percent, fixed parts included and without a gate."""
    return float(costs.computation(torch.tensor([table])))


def canonicalize(costs: CostTable, table: StaticTable) -> StaticTable:
    """Return a table as what images do by it, see ``CostTable.canonicalize``."""
    return tuple(costs.canonicalize(torch.tensor(table)).tolist()) if costs.exits else table


def is_within_budget(costs: CostTable, table: StaticTable, budget: float) -> bool:
    """Say whether a table costs at most ``budget`` percent."""
    return static_table_computation(costs, table) <= budget + _TOLERANCE


def cheapest_static_table(costs: CostTable) -> StaticTable:
    """Return the cheapest table: the cheapest option at every layer, up to the exit by which that costs least."""
    candidates = [
        (0,) * after + (costs.exit_action,) * (costs.n_layers - after)
        for after in (*costs.exits_after, costs.n_layers)
    ]
    return min(candidates, key=lambda table: static_table_computation(costs, table))


def fit_to_budget(table: StaticTable, costs: CostTable, budget: float) -> StaticTable:
    """Lower, one option at a time, the layer that saves most until a table fits under a budget.

    Args:
        table: Option index of each layer.
        costs: What they cost.
        budget: Upper bound on computation in percent; the cheapest table must fit. It is returned
            where lowering options is not enough.
    """
    cheapest = cheapest_static_table(costs)
    assert is_within_budget(costs, cheapest, budget), "or there would be no end"
    option_costs = costs.option_costs()
    current = list(canonicalize(costs, table))
    while not is_within_budget(costs, tuple(current), budget):
        savings = [
            float(option_costs[layer, option] - option_costs[layer, option - 1])
            if 0 < option <= costs.options.full
            else -1.0
            for layer, option in enumerate(current)
        ]
        if max(savings) < 0:
            return cheapest
        current[savings.index(max(savings))] -= 1
    return tuple(current)


def fit_to_budget_haq(table: StaticTable, costs: CostTable, budget: float) -> StaticTable:
    """Lower layer after layer by one option, from the last to the first and round again, until a table fits under a budget.

    The rule of HAQ (Wang et al., CVPR 2019, section 3.2), which keeps the earlier layers at what
    they were given.

    Args:
        table: Option index of each layer.
        costs: What they cost.
        budget: Upper bound on computation in percent; the cheapest table must fit.
    """
    assert is_within_budget(costs, (0,) * len(table), budget), "or there would be no end"
    current = list(table)
    layer = len(current)
    while not is_within_budget(costs, tuple(current), budget):
        layer = (layer or len(current)) - 1
        current[layer] = max(0, current[layer] - 1)
    return tuple(current)
