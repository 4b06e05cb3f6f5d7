"""Bit options, MACs and costs."""

from dfs_rl.costs.bit_options import (
    ALLOWED_BITS,
    BIT_OPTION_SETS,
    DEFAULT_BITS,
    FULL,
    SKIP,
    BitOptions,
    parse_bit_options,
    relative_cost,
)
from dfs_rl.costs.cost_table import CostTable, Counting, ExitCost, FixedCost, check_exits

__all__ = [
    "ALLOWED_BITS",
    "BIT_OPTION_SETS",
    "DEFAULT_BITS",
    "FULL",
    "SKIP",
    "BitOptions",
    "CostTable",
    "Counting",
    "ExitCost",
    "FixedCost",
    "check_exits",
    "parse_bit_options",
    "relative_cost",
]
