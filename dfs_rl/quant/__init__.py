"""Quantizers as pure functions, and the layers built on them."""

from dfs_rl.quant.functional import Grid, fake_quantize, grid, mse_step, round_to_grid, to_codes
from dfs_rl.quant.layers import FractionalConv2d, FractionalLinear, LayerQuantizers
from dfs_rl.quant.prepared import PreparedConv2d, PreparedLinear

__all__ = [
    "FractionalConv2d",
    "FractionalLinear",
    "Grid",
    "LayerQuantizers",
    "PreparedConv2d",
    "PreparedLinear",
    "fake_quantize",
    "grid",
    "mse_step",
    "round_to_grid",
    "to_codes",
]
