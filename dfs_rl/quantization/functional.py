"""Uniform quantizers as pure functions of tensors.

Codes and rounding follow ``torch.fake_quantize_per_tensor_affine`` (multiply by the inverse scale,
round half to even, clamp). The gradients are those of LSQ (Esser et al., "Learned Step Size
Quantization", ICLR 2020): straight through to the input inside the range; to the scale the rounding
error inside and the end of the range outside.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import ALLOWED_BITS, FULL, SKIP
from dfs_rl.errors import ConfigError

MIN_SCALE = 1e-8
"""Least calibrated scale, which constant zeros get."""

_SEARCH_POINTS = 48
_SEARCH_VALUES = 2**17  # per row: an error far below that of rounding, in milliseconds


class QuantRange(NamedTuple):
    """Range of a quantizer's integer codes, both ends included.

    ``gap`` is the distance of neighbouring codes: 2 for the binary codes {-1, 1}, 1 for all others.
    """

    qmin: int
    qmax: int
    gap: int = 1

    @classmethod
    def of(cls, bits: int, *, signed: bool) -> "QuantRange":
        """Return the range of a bit width: two's complement if signed, else from 0 on.

        Raises:
            ConfigError: If no quantizer has that bit width.
        """
        if bits not in ALLOWED_BITS or bits in (SKIP, FULL):
            quantized = [b for b in ALLOWED_BITS if b not in (SKIP, FULL)]
            raise ConfigError(f"no quantizer has {bits} bit; allowed are {quantized}.")
        if not signed:
            return cls(0, 2**bits - 1)
        if bits == 1:
            return cls(-1, 1, gap=2)
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def nearest_codes(scaled: Tensor, quant_range: QuantRange) -> Tensor:
    """Return the code nearest to each element of ``scaled``, without gradient."""
    qmin, qmax, gap = quant_range
    if gap == 1:
        return scaled.clamp(qmin, qmax).round_()
    return torch.where(scaled > 0, float(qmax), float(qmin)).to(scaled.dtype)


def to_codes(x: Tensor, scale: Tensor, quant_range: QuantRange) -> Tensor:
    """Return the integer codes of ``x`` as floating point values."""
    return nearest_codes(x * scale.reciprocal(), quant_range)


class _LearnedScale(torch.autograd.Function):
    """LSQ as one node, which keeps one tensor for the backward pass where operators keep four."""

    @staticmethod
    def forward(  # torch types the context as Any
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        quant_range: QuantRange,
        gradient_scale: float,
    ) -> Tensor:
        scaled = x * scale.reciprocal()
        ctx.save_for_backward(scaled, scale)
        ctx.quant_range = quant_range
        ctx.gradient_scale = gradient_scale
        return nearest_codes(scaled, quant_range).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        gradient = gradients[0]
        scaled, scale = ctx.saved_tensors
        # d(codes * scale) / d scale: the rounding error inside the range, its end outside.
        slope = nearest_codes(scaled, ctx.quant_range)
        slope = slope.sub_(_inside(scaled, scaled, ctx.quant_range)).mul_(gradient)
        scale_gradient = slope.sum_to_size(scale.shape) if scale.dim() else slope.sum()
        return (
            _inside(gradient, scaled, ctx.quant_range),
            scale_gradient.to(scale.dtype) * ctx.gradient_scale,
            None,
            None,
        )


def _inside(values: Tensor, scaled: Tensor, quant_range: QuantRange) -> Tensor:
    """Return ``values`` where ``scaled`` lies within the range, its ends included, and 0 elsewhere.

    One fused operator; ``masked_fill`` is slower and loses the channels-last layout.
    """
    below, above = _neighbours(quant_range, scaled.dtype)
    inside: Tensor = torch.ops.aten.hardtanh_backward(values, scaled, below, above)
    return inside


@cache
def _neighbours(quant_range: QuantRange, dtype: torch.dtype) -> tuple[float, float]:
    """Return the numbers next to a range's ends: ``hardtanh_backward`` excludes its limits."""
    ends = torch.tensor([quant_range.qmin, quant_range.qmax], dtype=dtype)
    beyond = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    below, above = torch.nextafter(ends, beyond).tolist()
    if quant_range.qmin == 0:  # next to it lie denormal numbers, which may count as zero
        below = -torch.finfo(dtype).tiny
    return below, above


def fake_quantize(
    x: Tensor, scale: Tensor, quant_range: QuantRange, *, gradient_scale: float = 1.0
) -> Tensor:
    """Round ``x`` to multiples of a positive ``scale``, differentiable as in LSQ.

    The scale is a scalar or broadcastable to ``x``. Its gradient is multiplied by
    ``gradient_scale``, see ``lsq_gradient_scale``. Shape and dtype are those of ``x``.
    """
    y: Tensor = _LearnedScale.apply(x, scale, quant_range, gradient_scale)  # type: ignore[no-untyped-call]
    return y


def mse_scale(x: Tensor, quant_range: QuantRange, *, per_channel: bool = False) -> Tensor:
    """Return the scale with the least squared error on ``x``, by a search over clipping points.

    It is a float32 scalar, or with ``per_channel`` one for each entry of the first dimension.
    """
    rows = x.detach().flatten(1) if per_channel else x.detach().reshape(1, -1)
    # Thinned where long, by an odd stride, so that all columns of an image take part.
    rows = rows[:, :: -(-rows.shape[1] // _SEARCH_VALUES) | 1].float()
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=MIN_SCALE)  # [rows, 1]
    reach = max(quant_range.qmax, -quant_range.qmin)
    best_error = torch.full_like(largest, float("inf"))
    best_scale = largest / reach
    # Narrow ranges clip most of a bell-shaped distribution, wide ones almost nothing.
    for fraction in torch.linspace(0.05, 1.0, _SEARCH_POINTS).tolist():
        scale = fraction * largest / reach
        quantized = to_codes(rows, scale, quant_range) * scale
        error = (quantized - rows).square().mean(dim=1, keepdim=True)
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    return best_scale.flatten() if per_channel else best_scale.reshape(())


def lsq_gradient_scale(elements: int, quant_range: QuantRange) -> float:
    """Return LSQ's factor on the scale's gradient, ``1 / sqrt(elements * largest code)``."""
    return float((elements * quant_range.qmax) ** -0.5)
