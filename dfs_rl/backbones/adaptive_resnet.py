"""Adaptive-depth ResNets: every stage ends with a path of residual blocks that can be skipped, see ``adaptive_layer``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.adaptive_layer import (
    AdaptiveBackbone,
    AdaptiveLayer,
    Granularity,
    Stem,
    check_skippable,
    check_stages,
    make_stage,
)
from dfs_rl.backbones.base import PreparedBackbone
from dfs_rl.backbones.bottleneck import EXPANSION, BottleneckBlock
from dfs_rl.backbones.common_config import check_network
from dfs_rl.backbones.resnet import MAX_DEPTH, ResidualBlock, pool
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import PreparedConv2d, PreparedLinear
from dfs_rl.quantization.modules import FractionalConv2d, FractionalLinear

MAX_STAGES = 8
BlockKind = Literal["basic", "bottleneck"]


class _Kind(NamedTuple):
    """A kind of block: what makes one, how many times a stage's width leaves it, and its weighted layers."""

    make: type[ResidualBlock] | type[BottleneckBlock]
    expansion: int
    layers: int


_KINDS: dict[BlockKind, _Kind] = {
    "basic": _Kind(ResidualBlock, 1, 2),
    "bottleneck": _Kind(BottleneckBlock, EXPANSION, 3),
}
_STEM_KERNELS: dict[Stem, int] = {"cifar": 3, "imagenet": 7}


@dataclass(frozen=True, kw_only=True)
class AdaptiveResNetConfig:
    """Shape and precision of an adaptive-depth ResNet.

    Attributes:
        blocks: Blocks of each stage, at least 2; (3, 3, 3) basic ones make ResNet-20, (3, 4, 6, 3) bottlenecks ResNet-50.
        block: ``"basic"``, two 3 x 3 convolutions and a shortcut without parameters, or ``"bottleneck"``.
        stem: ``"cifar"``, a 3 x 3 convolution, or ``"imagenet"``, a 7 x 7 one with stride 2 and max pooling.
        granularity: ``"path"``: one decision a stage, about its whole path. ``"block"``: one about every block of the path. The
            stage's first decision then says which norms its mandatory blocks use; where it skips, the later blocks may still run,
            on an activation that was normalised for a path that is skipped, which no training has prepared them for unless its
            settings were mixed.
        width: Channels of the first stage's 3 x 3 convolutions; each further stage has twice as many.
        in_channels: Image channels, 1 to 4.
        n_classes: Classes, at least 2.
        image_size: Height and width of the images in pixels, at least 4; it decides what a layer costs.
        bits: The menu of every gated layer, see ``BitOptions``; 0, which skips it, must be on it.
        stem_bits: Precision of the stem, the mandatory blocks and the head, which no gate decides about.
        per_channel: One weight step per output channel instead of one per layer.

    Raises:
        ConfigError: If a value is outside its range.
    """

    blocks: tuple[int, ...] = (3, 3, 3)
    block: BlockKind = "basic"
    stem: Stem = "cifar"
    granularity: Granularity = "path"
    width: int = 16
    in_channels: int = 3
    n_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_network(self)
        check_skippable(self.bits)
        if not 1 <= len(self.blocks) <= MAX_STAGES:
            raise ConfigError(
                f"blocks is {self.blocks}, {len(self.blocks)} stages; allowed are 1 to {MAX_STAGES}."
            )
        shrinks = 2 ** (len(self.blocks) - 1) * (4 if self.stem == "imagenet" else 1)
        check_stages(self.blocks, self.image_size, shrinks=shrinks)
        if self.depth > MAX_DEPTH:
            raise ConfigError(
                f"blocks is {self.blocks}, which makes {self.depth} layers; at most {MAX_DEPTH} are allowed."
            )

    @property
    def depth(self) -> int:
        """Number of weighted layers, projections aside."""
        return _KINDS[self.block].layers * sum(self.blocks) + 2


class AdaptiveResNet(AdaptiveBackbone):
    """A ResNet whose stages' paths are gated layers; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "adaptive_resnet"
    config: AdaptiveResNetConfig

    def __init__(self, config: AdaptiveResNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.pools = config.stem == "imagenet"
        self.stem_conv = FractionalConv2d(
            config.in_channels,
            config.width,
            (config.stem_bits,),
            kernel_size=_STEM_KERNELS[config.stem],
            stride=2 if self.pools else 1,
            signed_input=True,
            per_channel=config.per_channel,
        )
        kind, channels = _KINDS[config.block], config.width
        layers: list[nn.Module] = []
        for stage, n_blocks in enumerate(config.blocks):
            inputs, channels = channels, config.width * 2**stage * kind.expansion
            layers += make_stage(
                partial(self._make_block, inputs, channels, first_stride=2 if stage else 1),
                n_blocks,
                config,
            )
        self.blocks = nn.ModuleList(layers)
        self.classifier = FractionalLinear(channels, config.n_classes, bits=config.stem_bits)
        self.finish_making()

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Stem, mandatory blocks and classifier."""
        return [self.stem_conv, *self.mandatory, self.classifier]

    def _make_block(
        self,
        in_channels: int,
        out_channels: int,
        n: int,
        bits: Sequence[int],
        norm_sets: int,
        *,
        first_stride: int,
    ) -> nn.Module:
        """Make the n-th block of a stage."""
        return _KINDS[self.config.block].make(
            in_channels if n == 0 else out_channels,
            out_channels,
            bits,
            stride=first_stride if n == 0 else 1,
            per_channel=self.config.per_channel,
            norm_sets=norm_sets,
        )

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, width, h, w]``."""
        hidden = functional.relu(self.stem_conv(self.normalise(images), self.stem_bits))
        return _max_pool(hidden) if self.pools else hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.classifier(pool(hidden))).float()

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedAdaptiveResNet":
        """Return the frozen form: norms folded, weights quantized once per option."""
        return PreparedAdaptiveResNet(self, dtype=dtype)


class PreparedAdaptiveResNet(PreparedBackbone):
    """A frozen adaptive-depth ResNet; see ``PreparedBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: float32, or bfloat16 where the hardware is fast at it. The stem and the head stay in float32.
    """

    def __init__(self, source: AdaptiveResNet, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        self.pools = source.pools
        self.stem_conv = PreparedConv2d(source.stem_conv, source.stem_bits, dtype=torch.float32)
        self.blocks = nn.ModuleList(
            cast("AdaptiveLayer", layer).prepare(dtype=dtype) for layer in source.blocks
        )
        self.classifier = PreparedLinear(source.classifier)
        self.freeze()

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, width, h, w]``."""
        hidden = self.stem_conv(self.normalise(images)).relu_()
        return cast("Tensor", _max_pool(hidden) if self.pools else hidden).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        return cast("Tensor", self.classifier(pool(hidden)))


def _max_pool(hidden: Tensor) -> Tensor:
    return functional.max_pool2d(hidden, kernel_size=3, stride=2, padding=1)
