"""CIFAR ResNets (He et al., CVPR 2016, section 4.2) whose residual blocks run at any bit option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.prepared import PreparedBlock, PreparedResNet, pool, shortcut_of
from dfs_rl.backbones.shape import ShapedBackbone, check_network
from dfs_rl.cost import DEFAULT_BITS, SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quant.layers import FractionalConv2d, FractionalLinear

MIN_DEPTH, MAX_DEPTH = 8, 1202  # the deepest in He et al.
STAGES = 3
FirstBlock = Literal["gated", "always"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Shape and precision of a ResNet.

    Attributes:
        depth: Number of weighted layers, 6 n + 2: 8, 14, 20, 32, 38, 56, 74, 110, ...
        width: Channels of the first stage; the second and third have twice and four times as many.
        in_channels: Image channels, 1 to 4.
        n_classes: Classes, at least 2.
        image_size: Height and width of the images in pixels, at least 4; it only decides what a layer costs.
        bits: The menu of every gated block, see ``BitOptions``.
        stem_bits: Precision of the stem and the head, which no gate decides about.
        first_block: ``"gated"`` like the others, or ``"always"``: it runs as part of the stem, as in SkipNet and DFS.
        per_channel: One weight step per output channel instead of one per layer.

    Raises:
        ConfigError: If a value is outside its range.
    """

    depth: int = 20
    width: int = 16
    in_channels: int = 3
    n_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    first_block: FirstBlock = "gated"
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_network(self)
        if not MIN_DEPTH <= self.depth <= MAX_DEPTH or (self.depth - 2) % 6:
            raise ConfigError(
                f"depth is {self.depth}; a CIFAR ResNet has 6 n + 2 layers: 8, 14, 20, 32, 38, ..., {MAX_DEPTH}."
            )

    @property
    def blocks_per_stage(self) -> int:
        """Residual blocks in each of the three stages."""
        return (self.depth - 2) // 6


class ResidualBlock(nn.Module):
    """Two convolutions and a parameter-free shortcut; 0 bit leaves the shortcut alone.

    Args:
        in_channels: Channels that enter.
        out_channels: Channels that leave, at least ``in_channels``.
        bits: The non-zero bit widths it runs at.
        stride: 1, or 2 to halve height and width.
        per_channel: See ``ResNetConfig``.
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
        self.stride = stride
        self.extra_channels = out_channels - in_channels
        self.conv1 = FractionalConv2d(
            in_channels,
            out_channels,
            bits,
            stride=stride,
            per_channel=per_channel,
            norm_sets=norm_sets,
        )
        self.conv2 = FractionalConv2d(
            out_channels, out_channels, bits, per_channel=per_channel, norm_sets=norm_sets
        )

    def forward(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]`` at ``bits``, with the norms of that set."""
        shortcut = shortcut_of(hidden, stride=self.stride, extra_channels=self.extra_channels)
        if bits == SKIP:
            return shortcut
        branch = functional.relu(self.conv1(hidden, bits, norm_set))
        return functional.relu(self.conv2(branch, bits, norm_set) + shortcut)

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> PreparedBlock:
        """Return the frozen form with the norms of that set."""
        return PreparedBlock(self, dtype=dtype, norm_set=norm_set)


class ResNet(ShapedBackbone):
    """A CIFAR ResNet whose residual blocks are gated layers; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "resnet"
    config: ResNetConfig

    def __init__(self, config: ResNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.stem_conv = FractionalConv2d(
            config.in_channels,
            config.width,
            (config.stem_bits,),
            signed_input=True,
            per_channel=config.per_channel,
        )
        widths = [config.width * 2**stage for stage in range(STAGES)]
        outputs = [w for w in widths for _ in range(config.blocks_per_stage)]
        inputs = [config.width, *outputs[:-1]]
        run_bits = tuple(bits for bits in config.bits if bits != SKIP)
        blocks = [
            ResidualBlock(
                i,
                o,
                (config.stem_bits,) if config.first_block == "always" and n == 0 else run_bits,
                stride=2 if o > i else 1,
                per_channel=config.per_channel,
            )
            for n, (i, o) in enumerate(zip(inputs, outputs, strict=True))
        ]
        always = 1 if config.first_block == "always" else 0
        self.stem_blocks = nn.ModuleList(blocks[:always])
        self.blocks = nn.ModuleList(blocks[always:])
        self.classifier = FractionalLinear(widths[-1], config.n_classes, bits=config.stem_bits)
        self.finish_making()

    @property
    def layers(self) -> Sequence[ResidualBlock]:
        """The gated blocks, in order."""
        return cast("Sequence[ResidualBlock]", self.blocks)

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Stem, classifier, and the first block if it always runs."""
        return [self.stem_conv, self.stem_blocks, self.classifier]

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated block, ``[batch, width, h, w]``."""
        hidden = functional.relu(self.stem_conv(self.normalise(images), self.stem_bits))
        for block in self.stem_blocks:
            hidden = block(hidden, self.stem_bits)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.classifier(pool(hidden))).float()

    def prepare(self, dtype: torch.dtype = torch.float32) -> PreparedResNet:
        """Return the frozen form: norms folded, weights quantized once per option."""
        return PreparedResNet(self, dtype=dtype)
