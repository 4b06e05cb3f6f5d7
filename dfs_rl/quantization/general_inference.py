"""Frozen forms of the operators in ``general``: weights quantized once per bit width, norms folded."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL
from dfs_rl.quantization.functional import Grid, grid
from dfs_rl.quantization.general_modules import (
    FractionalAttention,
    FractionalMatmul,
    GeneralConv2d,
    GeneralNorm,
)
from dfs_rl.quantization.inference import PreparedConv2d, PreparedLinear, quantize_input
from dfs_rl.quantization.modules import FractionalLinear, LayerNormPerBits


class PreparedMenu(nn.Module):
    """An operator at every bit width.

    Args:
        bits: The bit widths.
        frozen: The operator at each of them.
    """

    calibrating = False
    """Nothing sets its steps any more."""

    def __init__(self, bits: Sequence[int], frozen: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.frozen = nn.ModuleList(frozen)

    def forward(self, *arguments: Tensor | int) -> Tensor:
        """Run the operator on all arguments but the last, which is the bit width."""
        *tensors, bits = arguments
        return cast("Tensor", self.frozen[self.bits.index(cast("int", bits))](*tensors))


class PreparedGeneralNorm(nn.Module):
    """One bit width of a ``GeneralNorm``, frozen.

    Args:
        source: The trained norm.
        bits: Which of its bit widths to freeze.
    """

    def __init__(self, source: GeneralNorm, bits: int) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = source.scale_and_shift(bits)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[batch, channels, ...]``."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


class PreparedLayerNorm(nn.Module):
    """One set of a ``LayerNormPerBits``, frozen, in float32.

    Args:
        source: The trained norm.
        norm_set: Which of its sets.
    """

    def __init__(self, source: LayerNormPerBits, *, norm_set: int = 0) -> None:
        super().__init__()
        self.bits = source.bits
        self.epsilon = source.epsilon
        self.weight: Tensor
        self.bias: Tensor
        rows = [source.norm_row(bits, norm_set) for bits in self.bits]
        self.register_buffer("weight", source.norm_weight[rows].detach().clone())
        self.register_buffer("bias", source.norm_bias[rows].detach().clone())

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Normalise ``[..., channels]`` as at ``bits``."""
        i = self.bits.index(bits)
        return functional.layer_norm(
            x, x.shape[-1:], self.weight[i], self.bias[i], eps=self.epsilon
        )


class PreparedMatmul(nn.Module):
    """One bit width of a ``FractionalMatmul``, frozen.

    Args:
        source: The trained product.
        bits: Which of its bit widths to freeze.
    """

    def __init__(self, source: FractionalMatmul, bits: int) -> None:
        super().__init__()
        quantizers = source.quantizers
        self.grids: tuple[Grid, Grid] | None = None
        self.steps: Tensor
        steps = torch.ones(2)
        if bits != FULL:
            self.grids = (grid(bits, signed=quantizers.signed_input), grid(bits, signed=True))
            second = quantizers.weight_log_step[quantizers.bits.index(bits)].exp()
            steps = torch.stack([quantizers.input_step_of(bits), second])
        self.register_buffer("steps", steps.detach().clone())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply ``[..., n, k]`` by ``[..., k, m]``."""
        if self.grids is None:
            return first @ second
        inverse = self.steps.reciprocal()
        codes = quantize_input(first, inverse[0], self.grids[0])
        return (codes @ quantize_input(second, inverse[1], self.grids[1])) * self.steps.prod()


def prepare_operator(source: nn.Module) -> nn.Module:
    """Return the frozen form of a fractional operator, called in the same way.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(source, FractionalAttention):
        frozen = FractionalAttention(
            source.scores.bits, scale=source.scale, causal=source.causal, grouped=source.grouped
        )
        frozen.scores = cast("FractionalMatmul", prepare_operator(source.scores))
        frozen.mix = cast("FractionalMatmul", prepare_operator(source.mix))
        return frozen
    if isinstance(source, FractionalLinear):
        return PreparedMenu(source.bits, [PreparedLinear(source, b) for b in source.bits])
    if isinstance(source, GeneralConv2d):
        frozen_at = [PreparedConv2d(source, b, dtype=torch.float32) for b in source.bits]
        return PreparedMenu(source.bits, frozen_at)
    if isinstance(source, GeneralNorm):
        return PreparedMenu(source.bits, [PreparedGeneralNorm(source, b) for b in source.bits])
    if isinstance(source, FractionalMatmul):
        return PreparedMenu(source.bits, [PreparedMatmul(source, b) for b in source.bits])
    raise TypeError(f"{type(source).__name__} has no frozen form.")
