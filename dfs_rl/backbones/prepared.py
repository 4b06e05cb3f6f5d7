"""The frozen form of a ResNet: what environments, evaluation and deployment run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import PreparedBackbone
from dfs_rl.cost import SKIP
from dfs_rl.quant.prepared import PreparedConv2d, PreparedLinear, convolve_in_turn

if TYPE_CHECKING:
    from dfs_rl.backbones.resnet import ResidualBlock, ResNet


def shortcut_of(hidden: Tensor, *, stride: int, extra_channels: int) -> Tensor:
    """Subsample and pad with zero channels (He et al., option A): it has no weights and costs no MACs."""
    if stride == 1 and extra_channels == 0:
        return hidden
    return functional.pad(hidden[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, extra_channels))


def pool(hidden: Tensor) -> Tensor:
    """Average ``[batch, channels, h, w]`` over positions: float32 ``[batch, channels]``."""
    return hidden.mean(dim=(2, 3), dtype=torch.float32)


class PreparedBlock(nn.Module):
    """A residual block with every bit width's weights quantized and norms folded beforehand.

    Args:
        source: The trained block.
        dtype: What it computes in.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(self, source: "ResidualBlock", *, dtype: torch.dtype, norm_set: int = 0) -> None:
        super().__init__()
        self.stride = source.stride
        self.extra_channels = source.extra_channels
        self.bits = source.conv1.bits
        self.first, self.second = (
            nn.ModuleList(
                PreparedConv2d(convolution, bits, dtype=dtype, norm_set=norm_set)
                for bits in self.bits
            )
            for convolution in (source.conv1, source.conv2)
        )

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``; ``hidden`` is left as it is."""
        shortcut = shortcut_of(hidden, stride=self.stride, extra_channels=self.extra_channels)
        if bits == SKIP:
            return shortcut
        i = self.bits.index(bits)
        first = cast("PreparedConv2d", self.first[i])
        branch = convolve_in_turn((first, cast("PreparedConv2d", self.second[i])), hidden)
        return branch.add_(shortcut).relu_()


class PreparedResNet(PreparedBackbone):
    """A frozen ResNet; see ``PreparedBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: float32, or bfloat16 where the hardware is fast at it. The stem and the head stay in float32.
    """

    def __init__(self, source: "ResNet", *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.stem_bits = source.stem_bits
        self.stem_conv = PreparedConv2d(source.stem_conv, source.stem_bits, dtype=torch.float32)
        self.stem_blocks = nn.ModuleList(
            PreparedBlock(cast("ResidualBlock", block), dtype=torch.float32)
            for block in source.stem_blocks
        )
        self.blocks = nn.ModuleList(PreparedBlock(block, dtype=dtype) for block in source.layers)
        self.classifier = PreparedLinear(source.classifier)
        self.freeze()

    @property
    def layers(self) -> Sequence[PreparedBlock]:
        """The gated blocks, in order."""
        return cast("Sequence[PreparedBlock]", self.blocks)

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated block, ``[batch, width, h, w]``."""
        hidden = self.stem_conv(self.normalise(images)).relu_()
        for block in self.stem_blocks:
            hidden = block(hidden, self.stem_bits)
        return cast("Tensor", hidden).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.classifier(pool(hidden)))
