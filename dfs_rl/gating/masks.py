"""Hard budgets: which options still allow a completion within the budget.

A budget bounds ``CostTable.computation(options)`` in percent: the gated layers, the never-gated parts and the gate's own MACs
(``gate_macs``). A gate costs the same before it has learned anything, so learning and deployment mask alike; where nobody knows
which gate will choose, as in an environment by itself, they are zero.
"""

import torch
from torch import Tensor

from dfs_rl.cost import CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.gating.walk import option_costs

_TOLERANCE = 1e-12
"""Sums of the same costs in another order must not decide whether a choice is within the budget."""


def gated_budget(
    costs: CostTable, budget: float, *, gate_macs: float = 0.0, name: str = "budget"
) -> float:
    """Turn a budget in percent into what the gated layers may spend, as a fraction.

    Args:
        costs: The cost table of the backbone.
        budget: Upper bound on computation in percent, fixed parts included.
        gate_macs: MACs per image of the gate, at full precision.
        name: What the user knows the budget by.

    Returns:
        The fraction that is left for the gated layers.

    Raises:
        ConfigError: If not even the cheapest options fit.
    """
    left = budget / 100.0 - costs.fixed_cost(gate_macs=gate_macs)
    cheapest = float(costs.option_costs().amin(dim=1).sum())
    if not left >= cheapest - _TOLERANCE:
        least = 100.0 * (cheapest + costs.fixed_cost(gate_macs=gate_macs))
        share = 100.0 * gate_macs / costs.total_macs
        gate = f" and the gate's own {share:.3g} %" if gate_macs else ""
        raise ConfigError(
            f"{name} {budget:g} % is not enough for the cheapest choice of every layer, which with the fixed parts of the "
            f"network{gate} comes to {least:.6g} %."
        )
    return left


def action_masks(
    costs: CostTable, layer: int, spent: Tensor, budget: float | None, *, gate_macs: float = 0.0
) -> Tensor:
    """Return which options keep the cheapest completion within the budget.

    The cheapest option is always allowed, so that a sample which is over its budget already can go on.

    Args:
        costs: The cost table of the backbone.
        layer: The layer to choose for.
        spent: Fraction spent so far, float64 ``[batch]``.
        budget: Upper bound on computation in percent; ``None`` allows everything.
        gate_macs: MACs per image of the gate, at full precision.

    Returns:
        bool ``[batch, options]``; each row allows the cheapest options up to some point.
    """
    if budget is None:
        return torch.ones(len(spent), len(costs.options), dtype=torch.bool, device=spent.device)
    table = option_costs(costs, spent.device)
    rest = table[layer + 1 :].amin(dim=1).sum()
    left = gated_budget(costs, budget, gate_macs=gate_macs) - spent - rest  # [batch]
    allowed = table[layer][None, :] <= left[:, None] + _TOLERANCE  # [batch, options]
    allowed[:, 0] = True
    return allowed


def clamp_options(options: Tensor, mask: Tensor) -> Tensor:
    """Lower every choice that is not allowed to the dearest one that is.

    Args:
        options: Option indices, int64 ``[batch]``.
        mask: From ``action_masks``, bool ``[batch, options]``.

    Returns:
        int64 ``[batch]``.
    """
    return torch.minimum(options, mask.sum(dim=1) - 1)
