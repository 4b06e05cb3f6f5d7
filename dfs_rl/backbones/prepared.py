"""The frozen form of a ResNet: what environments, evaluation and deployment run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.probe import describe, pool_grid
from dfs_rl.cost import SKIP
from dfs_rl.quant.prepared import PreparedConv2d, PreparedLinear, convolve_twice

if TYPE_CHECKING:
    from dfs_rl.backbones.resnet import ResidualBlock, ResNet
    from dfs_rl.quant.layers import FractionalLinear


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
    """

    def __init__(self, source: "ResidualBlock", *, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride = source.stride
        self.extra_channels = source.extra_channels
        self.bits = source.conv1.bits
        self.first = nn.ModuleList(
            PreparedConv2d(source.conv1, bits, dtype=dtype) for bits in self.bits
        )
        self.second = nn.ModuleList(
            PreparedConv2d(source.conv2, bits, dtype=dtype) for bits in self.bits
        )

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``; ``hidden`` is left as it is."""
        shortcut = shortcut_of(hidden, stride=self.stride, extra_channels=self.extra_channels)
        if bits == SKIP:
            return shortcut
        i = self.bits.index(bits)
        first = cast("PreparedConv2d", self.first[i])
        branch = convolve_twice(first, cast("PreparedConv2d", self.second[i]), hidden)
        return branch.add_(shortcut).relu_()


class PreparedResNet(nn.Module):
    """A frozen ResNet; satisfies the same contract as the form it was made from, without gradients.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: float32, or bfloat16 where the hardware is fast at it. The stem and the head stay in float32.
    """

    def __init__(self, source: "ResNet", *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.options = source.options
        self.costs = source.costs
        self.feature_sizes = source.feature_sizes
        self.feature_macs = source.feature_macs
        self.probe_grid = source.probe_grid
        self.image_shape = source.image_shape
        self.n_classes = source.n_classes
        self.dtype = dtype
        # Normalising is one multiplication and one addition per pixel: (x - mean) / std.
        self.image_scale: Tensor
        self.image_shift: Tensor
        self.feature_mean: Tensor
        self.feature_std: Tensor
        scale = source.image_std.reciprocal()
        self.register_buffer("image_scale", scale.clone())
        self.register_buffer("image_shift", -source.image_mean * scale)
        self.register_buffer("feature_mean", source.feature_mean.clone())
        self.register_buffer("feature_std", source.feature_std.clone())
        bits = source.config.stem_bits
        self.stem_conv = PreparedConv2d(source.stem_conv, bits, dtype=torch.float32)
        self.stem_bits = bits
        self.stem_blocks = nn.ModuleList(
            PreparedBlock(cast("ResidualBlock", block), dtype=torch.float32)
            for block in source.stem_blocks
        )
        self.blocks = nn.ModuleList(PreparedBlock(block, dtype=dtype) for block in source.layers)
        self.classifier = PreparedLinear(source.classifier)
        self.probes = nn.ModuleList(
            PreparedLinear(cast("FractionalLinear", probe)) for probe in source.probes
        )
        self.eval().requires_grad_(requires_grad=False)

    @property
    def layers(self) -> Sequence[PreparedBlock]:
        """The gated blocks, in order."""
        return cast("Sequence[PreparedBlock]", self.blocks)

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated block, ``[batch, width, h, w]``."""
        pixels = images.float() / 255.0 if images.dtype == torch.uint8 else images
        pixels = (pixels * self.image_scale + self.image_shift).contiguous(
            memory_format=torch.channels_last
        )
        hidden = self.stem_conv(pixels).relu_()
        for block in self.stem_blocks:
            hidden = block(hidden, self.stem_bits)
        return cast("Tensor", hidden).to(self.dtype)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the confidence of the layer's probe and the pooled channels, float32 ``[batch, 3 + channels]``."""
        parts = pool_grid(hidden, grid=self.probe_grid)
        return describe(parts, self.probes[layer](parts.flatten(1)))

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.classifier(pool(hidden)))
