"""Quantizers as pure functions, and the layers built on them."""

from dfs_rl.quantization.functional import (
    Grid,
    fake_quantize,
    grid,
    mse_step,
    round_to_grid,
    to_codes,
)
from dfs_rl.quantization.inference import PreparedConv2d, PreparedLinear
from dfs_rl.quantization.modules import FractionalConv2d, FractionalLinear, LayerQuantizers

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
