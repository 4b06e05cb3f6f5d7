"""The inverted residual of MobileNetV2 (Sandler et al., CVPR 2018, figure 4) at any bit option."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.costs import SKIP
from dfs_rl.quantization.inference import PreparedConv2d
from dfs_rl.quantization.modules import FractionalConv2d

HIGHEST = 6.0
"""Where its ReLUs end."""


class InvertedResidual(nn.Module):
    """A convolution that widens, a depthwise one and one that narrows, and a shortcut where the shape stays; 0 bit leaves that.

    What leaves it has a sign.

    Args:
        in_channels: Channels that enter.
        out_channels: Channels that leave.
        bits: The non-zero bit widths it runs at.
        expansion: How many times as wide it is inside; 1 leaves the first convolution out.
        stride: 1, or 2 to halve height and width.
        signed_input: Whether what enters has a sign.
        per_channel: One weight step per output channel instead of one per layer.
        norm_sets: Number of sets of norms, see ``NormPerBits``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        expansion: int,
        stride: int = 1,
        signed_input: bool = True,
        per_channel: bool = False,
        norm_sets: int = 1,
    ) -> None:
        super().__init__()
        inside = in_channels * expansion

        def make(
            inputs: int,
            outputs: int,
            *,
            kernel_size: int = 1,
            stride: int = 1,
            groups: int = 1,
            signed: bool = False,
        ) -> FractionalConv2d:
            return FractionalConv2d(
                inputs,
                outputs,
                bits,
                kernel_size=kernel_size,
                stride=stride,
                groups=groups,
                signed_input=signed,
                per_channel=per_channel,
                norm_sets=norm_sets,
            )

        widens = [make(in_channels, inside, signed=signed_input)] if expansion > 1 else []
        depthwise = make(
            inside,
            inside,
            kernel_size=3,
            stride=stride,
            groups=inside,
            signed=signed_input and not widens,
        )
        self.convolutions = nn.ModuleList([*widens, depthwise, make(inside, out_channels)])
        self.bits = tuple(bits)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]`` at ``bits``, with the norms of that set."""
        if bits == SKIP and self.has_shortcut:
            return hidden
        *inner, last = self.convolutions
        branch = hidden
        for convolution in inner:
            branch = convolution(branch, bits, norm_set).clamp(0.0, HIGHEST)
        branch = cast("Tensor", last(branch, bits, norm_set))
        return hidden + branch if self.has_shortcut else branch

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "PreparedInverted":
        """Return the frozen form with the norms of that set."""
        return PreparedInverted(self, dtype=dtype, norm_set=norm_set)


class PreparedInverted(nn.Module):
    """An inverted residual with every bit width's weights quantized and norms folded beforehand.

    Args:
        source: The trained block.
        dtype: What it computes in.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(self, source: InvertedResidual, *, dtype: torch.dtype, norm_set: int = 0) -> None:
        super().__init__()
        self.bits = source.bits
        self.has_shortcut = source.has_shortcut
        self.branches = nn.ModuleList(
            nn.ModuleList(
                PreparedConv2d(convolution, bits, dtype=dtype, norm_set=norm_set)
                for convolution in cast("Sequence[FractionalConv2d]", source.convolutions)
            )
            for bits in self.bits
        )

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``; ``hidden`` is left as it is."""
        if bits == SKIP and self.has_shortcut:
            return hidden
        *inner, last = cast("nn.ModuleList", self.branches[self.bits.index(bits)])
        branch = hidden
        for convolution in inner:
            branch = convolution(branch).clamp_(0.0, HIGHEST)
        branch = cast("Tensor", last(branch))
        return branch.add_(hidden) if self.has_shortcut else branch
