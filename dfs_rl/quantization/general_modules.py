"""Operators of any network that run at any bit width of a menu: convolutions of every shape, products, attention, batch norms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import FULL
from dfs_rl.quantization.modules import (
    BatchNormPerBits,
    ConvGeometry,
    FractionalLayer,
    LayerQuantizers,
)


class GeneralNorm(BatchNormPerBits):
    """A trained batch norm, with a copy for every bit width.

    Args:
        mean: Its running mean, ``[channels]``.
        variance: Its running variance.
        weight: Its scale, ``None`` for one.
        bias: Its shift, ``None`` for zero.
        bits: The bit widths.
        epsilon: What it adds to variances.
    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        bits: Sequence[int],
        *,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.make_norm(bits, len(mean))
        self.epsilon = epsilon
        with torch.no_grad():
            self.running_mean.copy_(mean.expand_as(self.running_mean))
            self.running_var.copy_(variance.expand_as(self.running_var))
            if weight is not None:
                self.norm_weight.copy_(weight.expand_as(self.norm_weight))
            if bias is not None:
                self.norm_bias.copy_(bias.expand_as(self.norm_bias))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Normalise ``[batch, channels, ...]``."""
        return self.normalised(x, bits)


class GeneralConv2d(FractionalLayer):
    """A trained convolution of any shape, at any of several bit widths, with the batch norm after it if there is one.

    Args:
        weight: ``[out, in / groups, height, width]``; shared by all bit widths.
        bias: ``[out]``, or ``None``.
        bits: The bit widths.
        geometry: How it moves.
        norm: The batch norm after it.
        per_channel: One weight step per output channel instead of one per layer.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        bits: Sequence[int],
        *,
        geometry: ConvGeometry,
        norm: GeneralNorm | None = None,
        per_channel: bool = True,
    ) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.geometry = geometry
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.quantizers = LayerQuantizers(
            bits, signed_input=True, channels=len(weight) if per_channel else None
        )
        self.norm = norm

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Convolve ``[batch, in, h, w]`` at ``bits``."""
        x, weight = self.quantized(x, bits)
        out = self.geometry.convolve(x, weight, self.bias)
        return out if self.norm is None else self.norm.normalised(out, bits)

    def scale_and_shift(self, bits: int, norm_set: int = 0) -> tuple[Tensor, Tensor]:
        """Return what evaluation multiplies with after the convolution and then adds, ``[out]`` each."""
        scale, shift = torch.ones(len(self.weight)), torch.zeros(len(self.weight))
        if self.norm is not None:
            scale, shift = self.norm.scale_and_shift(bits, norm_set)
        return scale, shift if self.bias is None else shift + self.bias * scale


class FractionalMatmul(FractionalLayer):
    """A product of two activations, the second one signed, at any of several bit widths.

    Args:
        bits: The bit widths.
        signed_input: Whether the first one can be negative.
    """

    def __init__(self, bits: Sequence[int], *, signed_input: bool = True) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.quantizers = LayerQuantizers(bits, signed_input=signed_input)

    def forward(self, first: Tensor, second: Tensor, bits: int) -> Tensor:
        """Multiply ``[..., n, k]`` by ``[..., k, m]``."""
        if self.calibrating:
            self.quantizers.calibrate(first, second)
        if bits != FULL:
            first, second = self.quantizers(first, second, bits)
        return first @ second


class FractionalAttention(nn.Module):
    """Scaled dot-product attention, both of its products at any of several bit widths.

    Args:
        bits: The bit widths.
        scale: What the scores are multiplied with, ``None`` for one over the root of the query's size.
        causal: Whether a query sees no key that comes after its own place; there is no other mask then.
        grouped: Whether several heads of queries in turn share one of keys and values.
    """

    def __init__(
        self,
        bits: Sequence[int],
        *,
        scale: float | None,
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
        """Attend.

        Args:
            query: ``[..., n, k]``.
            key: ``[..., m, k]``.
            value: ``[..., m, v]``.
            rest: What is added to the scores or says which of them count, if anything, then the bits.

        Returns:
            ``[..., n, v]``.
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
        if mask is None:
            shares = scores.softmax(dim=-1)
        else:
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(mask.logical_not(), float("-inf"))
            else:
                scores = scores + mask
            # A query that may look at nothing gets nothing, as from torch's own attention.
            blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
            shares = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
        out: Tensor = self.mix(shares, value, bits)
        return out
