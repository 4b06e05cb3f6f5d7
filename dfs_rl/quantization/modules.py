"""Modules of several bit widths: shared weights, and one scale per width."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL, SKIP
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.functional import QuantRange, fake_quantize, lsq_gradient_scale, mse_scale
from dfs_rl.quantization.norms import BatchNormPerBits

_DEVIATIONS = 6.0
"""Reach of an output in standard deviations of its norm."""


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """Stride, padding, dilation and groups of a convolution, as in ``torch.nn.Conv2d``."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve ``[batch, in, h, w]``."""
        return functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class LayerQuantizers(nn.Module):
    """Learned scales of a layer: one for its input and one for its weight per quantized bit width.

    The parameters are logarithms of scales, as in TQT (Jain et al., MLSys 2020): a scale stays
    positive, and its updates are relative to its size, which spans three orders of magnitude
    between 2 and 16 bit. With ``channels``, weights have one scale per output channel.
    """

    def __init__(
        self, bits: Sequence[int], *, signed_input: bool, channels: int | None = None
    ) -> None:
        super().__init__()
        self.bits = tuple(b for b in bits if b != FULL)
        self.signed_input = signed_input
        self.per_channel = channels is not None
        weight_shape = (len(self.bits), channels) if channels is not None else (len(self.bits),)
        self.input_log_scale = nn.Parameter(torch.zeros(len(self.bits)))
        self.weight_log_scale = nn.Parameter(torch.zeros(weight_shape))

    def ranges(self, bits: int) -> tuple[QuantRange, QuantRange]:
        """Return the ranges of the codes of input and weight at ``bits``."""
        return QuantRange.of(bits, signed=self.signed_input), QuantRange.of(bits, signed=True)

    def input_scale(self, bits: int) -> Tensor:
        """Return the scale of the input at ``bits``, a scalar."""
        return self.input_log_scale[self.bits.index(bits)].exp()

    def weight_scale(self, bits: int, weight: Tensor) -> Tensor:
        """Return the scale of the weight at ``bits``, broadcastable to ``weight``."""
        scale = self.weight_log_scale[self.bits.index(bits)].exp()
        return scale.reshape(-1, *[1] * (weight.dim() - 1)) if self.per_channel else scale

    def forward(self, x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Quantize an input ``[batch, ...]`` and a weight; LSQ scales gradients per sample."""
        inputs, weights = self.ranges(bits)
        shared = weight[0].numel() if self.per_channel else weight.numel()
        each = prod(x.shape[1:])
        factors = lsq_gradient_scale(each, inputs), lsq_gradient_scale(shared, weights)
        weight_scale = self.weight_scale(bits, weight)
        return (
            fake_quantize(x, self.input_scale(bits), inputs, gradient_scale=factors[0]),
            fake_quantize(weight, weight_scale, weights, gradient_scale=factors[1]),
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor, weight: Tensor) -> None:
        """Set every scale to the one with the least squared error on this input and weight."""
        for i, bits in enumerate(self.bits):
            inputs, weights = self.ranges(bits)
            self.input_log_scale[i] = mse_scale(x, inputs).log()
            scale = mse_scale(weight, weights, per_channel=self.per_channel)
            self.weight_log_scale[i] = scale.log()


class FractionalLayer(nn.Module):
    """Base of the modules with quantizers; while ``calibrating``, inputs set their scales."""

    bits: tuple[int, ...]
    quantizers: LayerQuantizers
    calibrating = False

    def quantized(self, x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Return input and weight at ``bits``."""
        if self.calibrating:
            self.quantizers.calibrate(x, weight)
        return (x, weight) if bits == FULL else self.quantizers(x, weight, bits)


@contextmanager
def calibrating(layers: Collection[FractionalLayer]) -> Iterator[None]:
    """Let modules set their scales from every input."""
    for layer in layers:
        layer.calibrating = True
    try:
        yield
    finally:
        for layer in layers:
            layer.calibrating = False


class FractionalConv2d(FractionalLayer):
    """A convolution of any shape at any of several bit widths, with the batch norm after it.

    Args:
        weight: ``[out, in / groups, height, width]``, shared by all bit widths.
        bits: Bit widths; never 0, which runs no convolution.
        geometry: See ``ConvGeometry``.
        bias: ``[out]``.
        norm: None for a convolution without one.
        signed_input: Whether the input can be negative.
        per_channel: One weight scale per output channel instead of one per layer.

    Raises:
        ConfigError: If 0 is among the bit widths.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bits: Sequence[int],
        *,
        geometry: ConvGeometry,
        bias: nn.Parameter | None = None,
        norm: BatchNormPerBits | None = None,
        signed_input: bool = True,
        per_channel: bool = False,
    ) -> None:
        if SKIP in bits:
            raise ConfigError(f"bits is {list(bits)}; a convolution cannot run at 0 bit.")
        super().__init__()
        self.bits = tuple(bits)
        self.geometry = geometry
        self.weight = weight
        self.bias = bias
        self.norm = norm
        self.norm_sets = 1 if norm is None else norm.norm_sets
        self.quantizers = LayerQuantizers(
            bits, signed_input=signed_input, channels=len(weight) if per_channel else None
        )

    def forward(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Convolve and normalise ``[batch, in, h, w]`` at ``bits``, with the norms of that set."""
        x, weight = self.quantized(x, self.weight, bits)
        out = self.geometry.convolve(x, weight, self.bias)
        return out if self.norm is None else self.norm(out, bits, norm_set)

    def scale_and_shift(self, bits: int, norm_set: int = 0) -> tuple[Tensor, Tensor]:
        """Return factor and addend of evaluation mode after the convolution, ``[out]`` each."""
        scale, shift = torch.ones(len(self.weight)), torch.zeros(len(self.weight))
        if self.norm is not None:
            scale, shift = self.norm.scale_and_shift(bits, norm_set)
        return scale, shift if self.bias is None else shift + self.bias * scale

    def output_reach(self, bits: int, norm_set: int = 0) -> Tensor | None:
        """Return the largest absolute output to expect, a scalar, or ``None`` without a batch norm.

        The norm gives each channel a mean and a standard deviation, of which it takes six.
        """
        if self.norm is None:
            return None
        i = self.norm.norm_row(bits, norm_set)
        mean, deviation = self.norm.norm_bias[i], self.norm.norm_weight[i]
        return (mean.abs() + _DEVIATIONS * deviation.abs()).amax().detach()


class FractionalConvNorm(FractionalConv2d):
    """An untrained convolution with batch norm; at stride 1 it keeps height and width."""

    norm: BatchNormPerBits

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        signed_input: bool = False,
        per_channel: bool = False,
        norm_sets: int = 1,
    ) -> None:
        weight = torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        same = kernel_size // 2
        super().__init__(
            nn.Parameter(weight),
            bits,
            geometry=ConvGeometry(stride=(stride, stride), padding=(same, same), groups=groups),
            norm=BatchNormPerBits(out_channels, bits, sets=norm_sets),
            signed_input=signed_input,
            per_channel=per_channel,
        )


class FractionalLinear(FractionalLayer):
    """A linear layer at one fixed precision, as heads are, or at any of several bit widths.

    See ``torch.nn.Linear`` and ``FractionalConv2d`` for the arguments.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int | Sequence[int],
        signed_input: bool = False,
        bias: bool = True,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        self.bits = (bits,) if isinstance(bits, int) else tuple(bits)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.quantizers = LayerQuantizers(
            self.bits, signed_input=signed_input, channels=out_features if per_channel else None
        )

    def forward(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]`` at ``bits``, by default the only ones."""
        x, weight = self.quantized(x, self.weight, self.bits[0] if bits is None else bits)
        return functional.linear(x, weight, self.bias)


class FractionalMatmul(FractionalLayer):
    """A product of two activations, the second one signed, at any of several bit widths."""

    def __init__(self, bits: Sequence[int], *, signed_input: bool = True) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.quantizers = LayerQuantizers(bits, signed_input=signed_input)

    def forward(self, first: Tensor, second: Tensor, bits: int) -> Tensor:
        """Multiply ``[..., n, k]`` by ``[..., k, m]``."""
        first, second = self.quantized(first, second, bits)
        return first @ second


class FractionalAttention(nn.Module):
    """Scaled dot-product attention, both of its products at any of several bit widths.

    ``scale`` is the factor of the scores, by default one over the root of the query's size. With
    ``causal``, a query sees no later key, and there is no other mask. With ``grouped``, several
    heads of queries share one head of keys and values.
    """

    def __init__(
        self,
        bits: Sequence[int],
        *,
        scale: float | None = None,
        causal: bool = False,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.causal = causal
        self.grouped = grouped
        self.scores = FractionalMatmul(bits)
        self.mix = FractionalMatmul(bits, signed_input=False)  # of probabilities

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor | int) -> Tensor:
        """Return ``[..., n, v]`` of ``[..., n, k]``, ``[..., m, k]`` and ``[..., m, v]``.

        The rest is a mask, added to the scores or boolean, if there is one, and the bits.
        """
        *masks, bits = rest
        assert isinstance(bits, int)
        mask = masks[0] if masks else None
        assert not isinstance(mask, int)
        if self.grouped:
            heads = query.shape[-3]
            key, value = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        if bits == FULL and not self.scores.calibrating:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scale, is_causal=self.causal
            )
        scores = self.scores(query * scale, key.transpose(-2, -1), bits)
        if self.causal:
            mask = torch.ones_like(scores, dtype=torch.bool).tril()
        shares = scores.softmax(dim=-1) if mask is None else _masked_softmax(scores, mask)
        return cast("Tensor", self.mix(shares, value, bits))


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over keys; a query without any gets zeros, as from torch's attention."""
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    else:
        scores = scores + mask
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
