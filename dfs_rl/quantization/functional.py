"""Uniform quantizers as pure functions of tensors.

The grid and its rounding follow ``torch.fake_quantize_per_tensor_affine`` (multiply by the inverse
scale, round half to even, clamp). The gradients are those of LSQ (Esser et al., "Learned Step Size
Quantization", ICLR 2020): straight through to the input inside the grid; to the scale the rounding
error inside and the grid's end outside.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import ALLOWED_BITS, FULL, SKIP
from dfs_rl.errors import ConfigError

MIN_STEP = 1e-8
"""Least calibrated scale, which constant zeros get."""

_SEARCH_POINTS = 48
_SEARCH_VALUES = 2**17  # per row: an error far below the grid's own, in milliseconds


class Grid(NamedTuple):
    """Integer codes of a quantizer.

    Attributes:
        lowest: Smallest code.
        highest: Largest code.
        gap: Distance of neighbouring codes: 2 for the binary grid {-1, 1}, 1 for all others.
    """

    lowest: int
    highest: int
    gap: int = 1


def grid(bits: int, *, signed: bool) -> Grid:
    """Return the codes of a bit width.

    Args:
        bits: 1 to 8, 10, 12, 14 or 16.
        signed: Two's complement for weights, or unsigned for activations after a ReLU.

    Raises:
        ConfigError: If ``bits`` names no quantizer.
    """
    if bits not in ALLOWED_BITS or bits in (SKIP, FULL):
        quantized = [b for b in ALLOWED_BITS if b not in (SKIP, FULL)]
        raise ConfigError(f"no quantizer has {bits} bit; allowed are {quantized}.")
    if not signed:
        return Grid(0, 2**bits - 1)
    if bits == 1:
        return Grid(-1, 1, gap=2)
    return Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def round_to_grid(scaled: Tensor, codes: Grid) -> Tensor:
    """Return the code nearest to each element of ``scaled``, without gradient."""
    clamped = scaled.clamp(codes.lowest, codes.highest)
    if codes.gap == 1:
        return clamped.round_()
    return torch.where(clamped > 0, float(codes.highest), float(codes.lowest)).to(scaled.dtype)


def to_codes(x: Tensor, step: Tensor, codes: Grid) -> Tensor:
    """Return the integer codes of ``x`` as floating point values."""
    return round_to_grid(x * step.reciprocal(), codes)


class _LearnedStep(torch.autograd.Function):
    """LSQ as one node, which keeps one tensor for the backward pass where operators keep four."""

    @staticmethod
    def forward(  # torch types the context as Any
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        step: Tensor,
        codes: Grid,
        gradient_scale: float,
    ) -> Tensor:
        scaled = x * step.reciprocal()
        ctx.save_for_backward(scaled, step)
        ctx.codes = codes
        ctx.gradient_scale = gradient_scale
        return round_to_grid(scaled, codes).mul_(step).to(x.dtype)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        gradient = gradients[0]
        scaled, step = ctx.saved_tensors
        # d(codes * step) / d step: the rounding error inside the grid, the grid's end outside.
        slope = round_to_grid(scaled, ctx.codes)
        slope = slope.sub_(_inside(scaled, scaled, ctx.codes)).mul_(gradient)
        step_gradient = slope.sum_to_size(step.shape) if step.dim() else slope.sum()
        return (
            _inside(gradient, scaled, ctx.codes),
            step_gradient.to(step.dtype) * ctx.gradient_scale,
            None,
            None,
        )


def _inside(values: Tensor, scaled: Tensor, codes: Grid) -> Tensor:
    """Return ``values`` where ``scaled`` lies within the grid, its ends included, and 0 elsewhere.

    One fused operator; ``masked_fill`` is slower and loses the channels-last layout.
    """
    below, above = _neighbours(codes, scaled.dtype)
    inside: Tensor = torch.ops.aten.hardtanh_backward(values, scaled, below, above)
    return inside


@cache
def _neighbours(codes: Grid, dtype: torch.dtype) -> tuple[float, float]:
    """Return the numbers next to a grid's ends, since ``hardtanh_backward`` excludes its limits."""
    ends = torch.tensor([codes.lowest, codes.highest], dtype=dtype)
    beyond = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    below, above = torch.nextafter(ends, beyond).tolist()
    if codes.lowest == 0:  # next to it lie denormal numbers, which may count as zero
        below = -torch.finfo(dtype).tiny
    return below, above


def fake_quantize(x: Tensor, step: Tensor, codes: Grid, *, gradient_scale: float = 1.0) -> Tensor:
    """Snap ``x`` to the grid ``step * codes``, differentiable as in LSQ.

    Args:
        x: Any shape.
        step: Positive scale, a scalar or broadcastable to ``x``, such as ``[channels, 1, 1, 1]``.
        codes: The integer grid.
        gradient_scale: Factor on the scale's gradient, see ``lsq_gradient_scale``.

    Returns:
        The quantized values, same shape and dtype as ``x``.
    """
    y: Tensor = _LearnedStep.apply(x, step, codes, gradient_scale)  # type: ignore[no-untyped-call]
    return y


def mse_step(x: Tensor, codes: Grid, *, per_channel: bool = False) -> Tensor:
    """Return the scale with the least squared error on ``x``, by a search over clipping points.

    Args:
        x: Calibration values, any shape; the first dimension is the channel if ``per_channel``.
        codes: The integer grid.
        per_channel: One scale for each entry of the first dimension.

    Returns:
        A float32 scalar, or ``[channels]`` if ``per_channel``.
    """
    rows = x.detach().flatten(1) if per_channel else x.detach().reshape(1, -1)
    # Thinned where long, by an odd stride, so that all columns of an image take part.
    rows = rows[:, :: -(-rows.shape[1] // _SEARCH_VALUES) | 1].float()
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=MIN_STEP)  # [rows, 1]
    reach = max(codes.highest, -codes.lowest)
    best_error = torch.full_like(largest, float("inf"))
    best_step = largest / reach
    # Narrow grids clip most of a bell-shaped distribution, wide ones almost nothing.
    for fraction in torch.linspace(0.05, 1.0, _SEARCH_POINTS).tolist():
        step = fraction * largest / reach
        error = (to_codes(rows, step, codes) * step - rows).square().mean(dim=1, keepdim=True)
        best_step = torch.where(error < best_error, step, best_step)
        best_error = torch.minimum(error, best_error)
    return best_step.flatten() if per_channel else best_step.reshape(())


def lsq_gradient_scale(elements: int, codes: Grid) -> float:
    """Return LSQ's factor on the scale's gradient, ``1 / sqrt(elements * highest code)``."""
    return float((elements * codes.highest) ** -0.5)
