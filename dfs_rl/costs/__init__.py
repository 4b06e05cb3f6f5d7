"""Bit options, MACs and costs."""

from typing import TYPE_CHECKING

from dfs_rl.costs.bit_options import (
    ALLOWED_BITS,
    BIT_OPTION_SETS,
    DEFAULT_BITS,
    FULL,
    SKIP,
    BitOptions,
    parse_bit_options,
)
from dfs_rl.costs.cost_models import (
    COMPUTATION,
    COST_MODELS,
    BudgetUnit,
    CostModel,
    CostModelName,
    ExitCost,
    FixedCost,
    check_cost_model,
    check_exits,
    register_cost_model,
)

if TYPE_CHECKING:
    from dfs_rl.costs.cost_table import CostTable, Counting

__all__ = [
    "ALLOWED_BITS",
    "BIT_OPTION_SETS",
    "COMPUTATION",
    "COST_MODELS",
    "DEFAULT_BITS",
    "FULL",
    "SKIP",
    "BitOptions",
    "BudgetUnit",
    "CostModel",
    "CostModelName",
    "CostTable",
    "Counting",
    "ExitCost",
    "FixedCost",
    "check_cost_model",
    "check_exits",
    "parse_bit_options",
    "register_cost_model",
]


def __getattr__(name: str) -> object:
    """Import the cost table on first use: help pages read the cost models without torch."""
    if name in __all__:
        from dfs_rl.costs import cost_table

        return getattr(cost_table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
