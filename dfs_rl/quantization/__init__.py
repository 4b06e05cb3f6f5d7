"""Quantizers as pure functions, and the layers built on them."""

from dfs_rl.quantization.functional import QuantRange, fake_quantize, mse_scale, to_codes
from dfs_rl.quantization.inference import inference_form, to_inference
from dfs_rl.quantization.modules import (
    FractionalAttention,
    FractionalConv2d,
    FractionalConvNorm,
    FractionalLinear,
    FractionalMatmul,
    LayerQuantizers,
)
from dfs_rl.quantization.norms import BatchNormPerBits, LayerNormPerBits

__all__ = [
    "BatchNormPerBits",
    "FractionalAttention",
    "FractionalConv2d",
    "FractionalConvNorm",
    "FractionalLinear",
    "FractionalMatmul",
    "LayerNormPerBits",
    "LayerQuantizers",
    "QuantRange",
    "fake_quantize",
    "inference_form",
    "mse_scale",
    "to_codes",
    "to_inference",
]
