"""Quantizers as pure functions, and the layers built on them."""

from dfs_rl.quantization.functional import (
    Grid,
    fake_quantize,
    grid,
    mse_step,
    round_to_grid,
    to_codes,
)
from dfs_rl.quantization.inference import inference_form, to_inference
from dfs_rl.quantization.modules import (
    BatchNormPerBits,
    FractionalAttention,
    FractionalConv2d,
    FractionalConvNorm,
    FractionalLinear,
    FractionalMatmul,
    LayerNormPerBits,
    LayerQuantizers,
)

__all__ = [
    "BatchNormPerBits",
    "FractionalAttention",
    "FractionalConv2d",
    "FractionalConvNorm",
    "FractionalLinear",
    "FractionalMatmul",
    "Grid",
    "LayerNormPerBits",
    "LayerQuantizers",
    "fake_quantize",
    "grid",
    "inference_form",
    "mse_step",
    "round_to_grid",
    "to_codes",
    "to_inference",
]
