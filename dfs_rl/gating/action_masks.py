"""Action masks of per-input budgets.

A budget bounds ``CostTable.computation(options)`` in percent: the gated layers, the never-gated
parts and the gate's MACs (``gate_macs``). A gate has the same cost before and after training, so
training and deployment use the same masks; an environment without a known gate uses 0 MACs.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from dfs_rl.costs import CostTable
from dfs_rl.errors import ConfigError
from dfs_rl.gating.passes import AGAIN, AGAIN_MIRRORED, ANSWER, PassSettings

TOLERANCE = 1e-12
"""Rounding tolerance for sums of the same costs in another order."""


@lru_cache(maxsize=64)
def gated_budget(
    costs: CostTable, budget: float, *, gate_macs: float = 0.0, name: str = "budget"
) -> float:
    """Convert a budget in percent into the fraction that the gated layers may spend.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest actions.
    """
    fixed = costs.fixed_cost(gate_macs=gate_macs)
    left = budget / 100.0 - fixed
    cheapest = float(costs.least_costs()[0])
    if not left >= cheapest - TOLERANCE:
        gate = narrower = ""
        if gate_macs:
            share = costs.percent(costs.gate_cost(gate_macs))
            gate = f" and the gate ({costs.cost_text(share, 3)})"
            if budget / 100.0 - costs.fixed_cost() >= cheapest:
                narrower = ", or a narrower gate with --hidden"
        raise ConfigError(
            f"{name} is {costs.cost_text(budget)}, too little for the cheapest choice of every "
            f"layer, which with the fixed parts of the network{gate} costs "
            f"{costs.cost_text(100.0 * (cheapest + fixed))}; give a higher one{narrower}."
        )
    return left


def action_masks(
    costs: CostTable, layer: int, spent: Tensor, budget: float | None, *, gate_macs: float = 0.0
) -> Tensor:
    """Return the actions that keep the cheapest way to an answer within the budget.

    The exit action is allowed only at an exit. If no action fits, the one that leads to the
    cheapest answer is allowed, so that a sample over budget can continue.

    Args:
        costs: Cost table of the backbone.
        layer: Index of the layer to choose for.
        spent: Fraction spent so far, float64 ``[batch]``.
        budget: Upper bound on computation in percent; ``None`` allows every option.
        gate_macs: MACs per image of the gate, at full precision.

    Returns:
        bool ``[batch, actions]``; each row allows the cheapest options up to a limit.
    """
    if budget is None:
        exists = _actions_exist(costs, layer).to(spent.device)
        return exists.expand(len(spent), -1).clone()
    through = _costs_to_answer(costs, layer).to(spent.device)
    # One tensor, since the export to ONNX rounds numbers to float32 and leaves out tiny addends.
    most = gated_budget(costs, budget, gate_macs=gate_macs) + TOLERANCE
    left = torch.tensor(most, dtype=spent.dtype).to(spent.device) - spent  # [batch]
    allowed = through <= left[:, None]  # [batch, actions]
    cheapest = torch.arange(costs.n_actions, device=spent.device) == through.argmin()
    return allowed | cheapest


def end_masks(
    costs: CostTable,
    settings: PassSettings,
    spent: Tensor,
    budget: float | None,
    *,
    gate_macs: float = 0.0,
) -> Tensor:
    """Return the actions at the end of a pass, bool ``[batch, actions]``; see ``action_masks``.

    Another pass is allowed if its cheapest options are within the budget.
    """
    # A tensor, as in ``action_masks``.
    most = torch.tensor(_most_before_a_pass(costs, budget, gate_macs), dtype=spent.dtype)
    fits = spent <= most.to(spent.device)
    never = torch.zeros_like(fits)
    columns = {ANSWER: ~never, AGAIN: fits, AGAIN_MIRRORED: fits & settings.mirrored}
    return torch.stack([columns.get(a, never) for a in range(settings.n_actions(costs))], dim=1)


def action_mask(
    costs: CostTable, layer: int, spent: float, budget: float, *, gate_macs: float = 0.0
) -> list[bool]:
    """Return the row of ``action_masks`` for one sample, in plain numbers."""
    through, cheapest = _plain_costs_to_answer(costs, layer)
    left = gated_budget(costs, budget, gate_macs=gate_macs) + TOLERANCE - spent
    return [cost <= left or action == cheapest for action, cost in enumerate(through)]


def end_mask(
    costs: CostTable,
    settings: PassSettings,
    spent: float,
    budget: float | None,
    *,
    gate_macs: float = 0.0,
) -> list[bool]:
    """Return the first columns of ``end_masks`` for one sample, in plain numbers."""
    fits = spent <= _most_before_a_pass(costs, budget, gate_macs)
    return [True, fits, fits and settings.mirrored]  # ANSWER, AGAIN, AGAIN_MIRRORED


@lru_cache(maxsize=64)
def _most_before_a_pass(costs: CostTable, budget: float | None, gate_macs: float) -> float:
    """Return the most that may be spent where another pass is still within the budget."""
    if budget is None:
        return math.inf
    left = gated_budget(costs, budget, gate_macs=gate_macs) + TOLERANCE
    return left - costs.fixed_cost(gate_macs=gate_macs) - float(costs.least_costs()[0])


def _actions_exist(costs: CostTable, layer: int) -> Tensor:
    """Return the actions that a layer has, bool ``[actions]``."""
    exists = torch.ones(costs.n_actions, dtype=torch.bool)
    if costs.exits:
        exists[costs.exit_action] = layer in costs.exits_after
    return exists


def _costs_to_answer(costs: CostTable, layer: int) -> Tensor:
    """Return each action's least cost up to an answer, float64 ``[actions]``."""
    through = costs.action_costs()[layer].clone()
    through[: len(costs.options)] += costs.least_costs()[layer + 1]
    through[~_actions_exist(costs, layer)] = torch.inf
    return through


@lru_cache(maxsize=1024)
def _plain_costs_to_answer(costs: CostTable, layer: int) -> tuple[list[float], int]:
    """Return ``_costs_to_answer`` and the cheapest action."""
    through = _costs_to_answer(costs, layer)
    return through.tolist(), int(through.argmin())


def clamp_options(actions: Tensor, mask: Tensor, *, exit_action: int | None = None) -> Tensor:
    """Replace disallowed actions by the allowed option with the next fewer bits.

    If there is none, the allowed option with the fewest bits is taken. If only the exit action is
    allowed, it is taken; if it is disallowed, it becomes the option with the fewest bits. ``mask``
    is a result of ``action_masks``.
    """
    options = mask if exit_action is None else mask[:, :exit_action]
    leaving = torch.zeros_like(actions, dtype=torch.bool)
    if exit_action is not None:
        leaving = actions == exit_action
        actions = actions.masked_fill(leaving, 0)
    index = torch.arange(options.shape[1], device=mask.device)
    below = options & (index <= actions[:, None])
    nearest = torch.where(below, index, -1).amax(dim=1)
    first = options.to(torch.uint8).argmax(dim=1)
    chosen = torch.where(nearest < 0, first, nearest)
    if exit_action is None:
        return chosen
    takes_exit = (leaving & mask[:, exit_action]) | ~options.any(dim=1)
    return chosen.masked_fill(takes_exit, exit_action)
