"""Frozen forms of the fractional layers: weights quantized once per bit width, the norm folded into scale and bias.

A quantized convolution runs on integer codes held in floating point. Sums of such products are exact in float32 as long
as they stay below 2**24, whatever the order they are added in, so a sample's result does not depend on its batch; the
training form, which multiplies codes by steps first, agrees up to rounding. CPUs that can do the same sums in 8-bit
integers do, with the same result.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL
from dfs_rl.quantization.functional import Grid, grid, to_codes
from dfs_rl.quantization.int8 import IntegerConv2d, integer_convolutions_are_exact, to_uint8_codes
from dfs_rl.quantization.modules import ConvGeometry, FractionalLinear, LayerQuantizers

BF16_EXACT_BITS = 8
BYTE_BITS = 8


def quantize_input(x: Tensor, inverse_step: Tensor, codes: Grid) -> Tensor:
    """Return the float32 codes of ``x``; a fresh tensor, never ``x`` itself."""
    scaled = x.float() * inverse_step
    if codes.gap == 1:
        return scaled.round_().clamp_(codes.lowest, codes.highest)
    return torch.where(scaled > 0, float(codes.highest), float(codes.lowest))


def input_and_weight_codes(
    quantizers: LayerQuantizers, weight: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (inverse input step, weight codes, product of both steps per output channel or scalar)."""
    input_step = quantizers.input_step_of(bits)
    weight_step = quantizers.weight_step_of(bits, weight)
    codes = to_codes(weight, weight_step, grid(bits, signed=True))
    return input_step.reciprocal(), codes, (input_step * weight_step).flatten()


class Convolution(Protocol):
    """A trained convolution with quantizers, and whatever scales and shifts what comes out."""

    @property
    def weight(self) -> Tensor: ...  # noqa: D102
    @property
    def quantizers(self) -> LayerQuantizers: ...  # noqa: D102
    @property
    def geometry(self) -> ConvGeometry: ...  # noqa: D102
    def scale_and_shift(self, bits: int, norm_set: int = 0) -> tuple[Tensor, Tensor]: ...  # noqa: D102


class PreparedConv2d(nn.Module):
    """One bit width of a convolution, frozen: quantize, convolve codes, scale and shift.

    Args:
        source: The trained convolution, its norm with the running statistics.
        bits: Which of its bit widths to freeze.
        dtype: What it computes in; bfloat16 holds codes up to 8 bit exactly, but rounds what comes out.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(
        self, source: Convolution, bits: int, *, dtype: torch.dtype, norm_set: int = 0
    ) -> None:
        super().__init__()
        scale, bias = source.scale_and_shift(bits, norm_set)
        weight = source.weight
        self.geometry = source.geometry
        self.codes: Grid | None = None
        self.inverse_step: Tensor
        inverse_step = torch.ones(())
        if bits == FULL:
            weight = weight * scale.reshape(-1, 1, 1, 1)
            scale = torch.ones_like(scale)
        else:
            self.codes = grid(bits, signed=source.quantizers.signed_input)
            inverse_step, weight, product = input_and_weight_codes(source.quantizers, weight, bits)
            scale = scale * product
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.dtype = dtype
        # Codes of more than 8 bit do not fit bfloat16's mantissa.
        weight_dtype = torch.float32 if FULL > bits > BF16_EXACT_BITS else dtype
        packed = weight.detach().to(weight_dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("inverse_step", inverse_step.detach().float())
        self.register_buffer("weight", packed)
        self.register_buffer("scale", scale.detach().reshape(1, -1, 1, 1).to(dtype))
        self.register_buffer("bias", bias.detach().reshape(1, -1, 1, 1).to(dtype))
        self._integer: IntegerConv2d | None = None
        self.may_use_integers = (
            self.geometry.groups == 1
            and self.codes is not None
            and self.codes.lowest == 0
            and self.codes.highest < 2**BYTE_BITS
            and dtype == torch.float32
        )

    def fits_integers(self, x: Tensor) -> bool:
        """Whether ``x`` can be convolved in integer arithmetic: unsigned codes of up to 8 bit, on a CPU that is exact."""
        return (
            self.may_use_integers
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and not (x.requires_grad and torch.is_grad_enabled())
            and integer_convolutions_are_exact()
        )

    @property
    def integer(self) -> IntegerConv2d:
        """The same convolution in integer arithmetic, made on first use."""
        if self._integer is None:
            self._integer = IntegerConv2d(
                self.weight, self.scale.flatten(), self.bias.flatten(), geometry=self.geometry
            )
        return self._integer

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401 - as torch calls it
        super()._load_from_state_dict(*arguments)
        self._integer = None  # made of the weights from before

    def forward(self, x: Tensor) -> Tensor:
        """Return a fresh ``[batch, out, h, w]`` that the caller may change in place."""
        if self.codes is None:
            return self.geometry.convolve(x, self.weight, self.bias.flatten())
        if self.fits_integers(x):
            return self.integer(to_uint8_codes(x, self.inverse_step, self.codes.highest))
        codes = quantize_input(x, self.inverse_step, self.codes).to(self.weight.dtype)
        out = self.geometry.convolve(codes, self.weight)
        return out.to(self.dtype).mul_(self.scale).add_(self.bias)


def keep_from_integers_unless_finite(frozen: nn.Module) -> None:
    """Keep a network from integers if anything in it is not finite: they know no NaN, and would make an answer of it."""
    values = [v for v in frozen.state_dict().values() if v.is_floating_point()]
    if all(bool(v.isfinite().all()) for v in values):
        return
    for module in frozen.modules():
        if isinstance(module, PreparedConv2d):
            module.may_use_integers = False


def convolve_in_turn(convolutions: Sequence[PreparedConv2d], x: Tensor) -> Tensor:
    """Run one after another with a ReLU in between, on integers all the way where that gives the same."""
    first, *others = convolutions
    if not all(convolution.fits_integers(x) for convolution in convolutions):
        out = first(x)
        for convolution in others:
            out = convolution(out.relu_())
        return cast("Tensor", out)
    codes = to_uint8_codes(x, first.inverse_step, _highest(first))
    for convolution, following in pairwise(convolutions):
        step = 1.0 / float(following.inverse_step)
        codes = convolution.integer.to_codes(codes, step=step, highest=_highest(following))
    return convolutions[-1].integer(codes)


def _highest(convolution: PreparedConv2d) -> int:
    assert convolution.codes is not None, "only quantized convolutions fit integers"
    return convolution.codes.highest


class PreparedLinear(nn.Module):
    """One bit width of a ``FractionalLinear``, frozen, in float32.

    Args:
        source: The trained layer.
        bits: Which of its bit widths to freeze, by default the only one.
    """

    def __init__(self, source: FractionalLinear, bits: int | None = None) -> None:
        super().__init__()
        bits = source.bits[0] if bits is None else bits
        self.codes: Grid | None = None
        inverse_step, scale = torch.ones(()), torch.ones(())
        weight: Tensor = source.weight
        if bits != FULL:
            self.codes = grid(bits, signed=source.quantizers.signed_input)
            inverse_step, weight, scale = input_and_weight_codes(source.quantizers, weight, bits)
        bias = torch.zeros(len(weight)) if source.bias is None else source.bias
        self.inverse_step: Tensor
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.register_buffer("inverse_step", inverse_step.detach().clone())
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 ``[..., in]`` to ``[..., out]``."""
        if self.codes is not None:
            x = quantize_input(x, self.inverse_step, self.codes)
        return functional.linear(x, self.weight) * self.scale + self.bias
