"""Units and bounds of budgets, and what must not be given together; imports no torch."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from dfs_rl.costs import BudgetUnit
from dfs_rl.costs.cost_models import LATENCY
from dfs_rl.errors import ConfigError
from dfs_rl.utils.logging import print_status

if TYPE_CHECKING:
    from dfs_rl.costs import CostTable

ConfigT = TypeVar("ConfigT", bound=Any)


def with_percent_budgets(config: ConfigT, costs: "CostTable") -> ConfigT:
    """Return a configuration with its budgets in percent, as runs store them."""
    unit: BudgetUnit = config.budget_unit
    if unit == "percent":
        return config
    changes: dict[str, object] = {"budget_unit": "percent"}
    for name in ("budget", "budgets", "per_input_budget"):
        given = getattr(config, name, None)
        if isinstance(given, tuple):
            changes[name] = tuple(costs.percent_of_budget(budget, unit) for budget in given)
        elif given is not None:
            changes[name] = costs.percent_of_budget(given, unit)
    if len(changes) == 1:
        raise ConfigError(f"budget_unit is {unit!r}, but no budget is given; leave it out.")
    return replace(config, **changes)


def check_highest_budget(
    budget: float | None,
    costs: "CostTable",
    *,
    gate_macs: float = 0.0,
    passes: int = 1,
    name: str = "budget",
) -> None:
    """Check that a budget is at most what an image can cost.

    A budget in measured time may come from elsewhere, such as a frame rate, so it is only reported.
    """
    options = float(costs.option_costs().amax(dim=1).sum())
    most = 100.0 * passes * (options + costs.fixed_cost(gate_macs=gate_macs))
    if budget is None or budget <= most:
        return
    text = (
        f"{name} is {costs.cost_text(budget)}, but an image costs at most {costs.cost_text(most)}, "
        "so it bounds nothing"
    )
    if costs.profile is None:
        raise ConfigError(f"{text}; give a lower one.")
    print_status(f"Warning: {text}.")


def check_one_aim(config: object) -> None:
    """Check that a configuration has at most one of budget, cost weight and accuracy drop."""
    given = [
        f"{name} is {value:g}"
        for name in ("budget", "cost_weight", "max_accuracy_drop")
        if (value := getattr(config, name, None)) is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]}; give one of them.")


def check_budget_unit(unit: BudgetUnit, cost: str) -> None:
    """Check that budgets are in milliseconds only if the cost is latency."""
    if unit == "ms" and cost != LATENCY:
        raise ConfigError(
            f"budget_unit is 'ms', but cost is {cost}; give budgets in percent, or give --cost "
            "latency with a profile."
        )
