"""CIFAR ResNets (He et al., CVPR 2016, section 4.2) whose residual blocks run at any bit option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import PreparedBackbone
from dfs_rl.backbones.common_config import ShapedBackbone, check_network
from dfs_rl.costs import DEFAULT_BITS, SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import PreparedConv2d, PreparedLinear, convolve_in_turn
from dfs_rl.quantization.modules import FractionalConv2d, FractionalLinear

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


def shortcut_of(hidden: Tensor, *, stride: int, extra_channels: int) -> Tensor:
    """Subsample and pad with zero channels (He et al., option A): it has no weights and costs no MACs."""
    if stride == 1 and extra_channels == 0:
        return hidden
    return functional.pad(hidden[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, extra_channels))


def pool(hidden: Tensor) -> Tensor:
    """Average ``[batch, channels, h, w]`` over positions: float32 ``[batch, channels]``."""
    return hidden.mean(dim=(2, 3), dtype=torch.float32)


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

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> "PreparedBlock":
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

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedResNet":
        """Return the frozen form: norms folded, weights quantized once per option."""
        return PreparedResNet(self, dtype=dtype)


class PreparedBlock(nn.Module):
    """A residual block with every bit width's weights quantized and norms folded beforehand.

    Args:
        source: The trained block.
        dtype: What it computes in.
        norm_set: Which of its sets of norms to freeze.
    """

    def __init__(self, source: ResidualBlock, *, dtype: torch.dtype, norm_set: int = 0) -> None:
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

    def __init__(self, source: ResNet, *, dtype: torch.dtype = torch.float32) -> None:
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
