"""Bit options, MACs and costs."""

from dfs_rl.costs.bit_options import (
    ALLOWED_BITS,
    DEFAULT_BITS,
    FULL,
    MENUS,
    SKIP,
    BitOptions,
    menu_of,
    relative_cost,
)
from dfs_rl.costs.cost_table import CostTable, Counting, ExitCost, FixedCost, check_exits

__all__ = [
    "ALLOWED_BITS",
    "DEFAULT_BITS",
    "FULL",
    "MENUS",
    "SKIP",
    "BitOptions",
    "CostTable",
    "Counting",
    "ExitCost",
    "FixedCost",
    "check_exits",
    "menu_of",
    "relative_cost",
]
