"""The bottleneck block of the ImageNet ResNets (He et al., CVPR 2016, figure 5) at any bit option."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.costs import SKIP
from dfs_rl.quantization.inference import PreparedConv2d, convolve_in_turn
from dfs_rl.quantization.modules import FractionalConv2d

EXPANSION = 4
"""How many times as many channels leave a block as its 3 x 3 convolution has."""


class BottleneckBlock(nn.Module):
    """Three convolutions and a shortcut, which is a convolution itself where the shape changes; 0 bit leaves the shortcut alone.

    The 3 x 3 convolution has the stride, as in torchvision. The shortcut's norms are the same in all sets.

    Args:
        in_channels: Channels that enter.
        out_channels: Channels that leave, a multiple of ``EXPANSION``.
        bits: The non-zero bit widths it runs at.
        stride: 1, or 2 to halve height and width.
        per_channel: One weight step per output channel instead of one per layer.
        norm_sets: Number of sets of norms, see ``NormPerBits``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        stride: int = 1,
        per_channel: bool = False,
        norm_sets: int = 1,
    ) -> None:
        super().__init__()
        middle = out_channels // EXPANSION

        def make(
            inputs: int, outputs: int, *, kernel_size: int = 1, stride: int = 1, sets: int
        ) -> FractionalConv2d:
            return FractionalConv2d(
                inputs,
                outputs,
                bits,
                kernel_size=kernel_size,
                stride=stride,
                per_channel=per_channel,
                norm_sets=sets,
            )

        self.conv1 = make(in_channels, middle, sets=norm_sets)
        self.conv2 = make(middle, middle, kernel_size=3, stride=stride, sets=norm_sets)
        self.conv3 = make(middle, out_channels, sets=norm_sets)
        self.projection: FractionalConv2d | None = None
        if stride > 1 or in_channels != out_channels:
            self.projection = make(in_channels, out_channels, stride=stride, sets=1)

    def forward(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]`` at ``bits``, with the norms of that set."""
        shortcut = hidden if self.projection is None else self.projection(hidden, bits)
        if bits == SKIP:
            return shortcut
        branch = functional.relu(self.conv1(hidden, bits, norm_set))
        branch = functional.relu(self.conv2(branch, bits, norm_set))
        return functional.relu(self.conv3(branch, bits, norm_set) + shortcut)

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "PreparedBottleneck":
        """Return the frozen form with the norms of that set."""
        return PreparedBottleneck(self, dtype=dtype, norm_set=norm_set)


class PreparedBottleneck(nn.Module):
    """A bottleneck block with every bit width's weights quantized and norms folded beforehand.

    Args:
        source: The trained block.
        dtype: What it computes in.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(self, source: BottleneckBlock, *, dtype: torch.dtype, norm_set: int = 0) -> None:
        super().__init__()
        self.bits = source.conv1.bits
        self.branches = nn.ModuleList(
            nn.ModuleList(
                PreparedConv2d(convolution, bits, dtype=dtype, norm_set=norm_set)
                for convolution in (source.conv1, source.conv2, source.conv3)
            )
            for bits in self.bits
        )
        projection = source.projection
        self.projections = nn.ModuleList(
            PreparedConv2d(projection, bits, dtype=dtype)
            for bits in self.bits
            if projection is not None
        )

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``; ``hidden`` is left as it is."""
        if bits == SKIP and not self.projections:
            return hidden
        i = self.bits.index(bits)
        shortcut = self.projections[i](hidden) if self.projections else hidden
        branch = cast("Sequence[PreparedConv2d]", self.branches[i])
        return convolve_in_turn(branch, hidden).add_(shortcut).relu_()
