"""Bit options, MACs and costs."""

from typing import TYPE_CHECKING

from dfs_rl.costs.bit_options import (
    ALLOWED_BITS,
    DEFAULT_BITS,
    FULL,
    MENUS,
    SKIP,
    BitOptions,
    menu_of,
)
from dfs_rl.costs.cost_models import (
    COMPUTATION,
    COST_MODELS,
    CostModel,
    CostModelName,
    relative_cost,
)

if TYPE_CHECKING:
    from dfs_rl.costs.cost_table import CostTable, Counting, ExitCost, FixedCost, check_exits

__all__ = [
    "ALLOWED_BITS",
    "COMPUTATION",
    "COST_MODELS",
    "DEFAULT_BITS",
    "FULL",
    "MENUS",
    "SKIP",
    "BitOptions",
    "CostModel",
    "CostModelName",
    "CostTable",
    "Counting",
    "ExitCost",
    "FixedCost",
    "check_exits",
    "menu_of",
    "relative_cost",
]


def __getattr__(name: str) -> object:
    """Import the cost table on first use: help pages read the cost models without torch."""
    if name in __all__:
        from dfs_rl.costs import cost_table

        return getattr(cost_table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
