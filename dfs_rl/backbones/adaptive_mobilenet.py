"""MobileNetV2 (Sandler et al., CVPR 2018) of adaptive depth, see ``adaptive_layer``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

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
from dfs_rl.backbones.common_config import check_network
from dfs_rl.backbones.inverted_residual import HIGHEST, InvertedResidual
from dfs_rl.backbones.resnet import pool
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import PreparedConv2d, PreparedLinear
from dfs_rl.quantization.modules import FractionalConv2d, FractionalLinear

FULL_WIDTH = 32
_EXPANSION = 6
_BEFORE, _AFTER, _LAST = 16, 320, 1280  # channels of what is no stage, at full width
_STAGES = (24, 32, 64, 96, 160)  # channels of the stages, likewise
_STRIDES: dict[Stem, tuple[int, ...]] = {  # of the stem and of the stages
    "imagenet": (2, 2, 2, 2, 1, 2),
    "cifar": (1, 1, 2, 2, 1, 2),
}
_SHRINKS: dict[Stem, int] = {"imagenet": 32, "cifar": 8}


@dataclass(frozen=True, kw_only=True)
class AdaptiveMobileNetConfig:
    """Shape and precision of a MobileNetV2 of adaptive depth.

    Attributes:
        blocks: Blocks of each of the five stages that have several, at least 2.
        stem: ``"imagenet"`` halves images five times, ``"cifar"`` three times.
        granularity: See ``AdaptiveResNetConfig``.
        width: Channels of the first convolution, 32 in the paper; all others are in proportion.
        in_channels: Image channels, 1 to 4.
        n_classes: Classes, at least 2.
        image_size: Height and width of the images in pixels, at least 4; it decides what a layer costs.
        bits: The menu of every gated layer, see ``BitOptions``; 0, which skips it, must be on it.
        stem_bits: Precision of everything that no gate decides about.
        per_channel: One weight step per output channel instead of one per layer.

    Raises:
        ConfigError: If a value is outside its range.
    """

    blocks: tuple[int, ...] = (2, 3, 4, 3, 3)
    stem: Stem = "cifar"
    granularity: Granularity = "path"
    width: int = FULL_WIDTH
    in_channels: int = 3
    n_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_network(self)
        check_skippable(self.bits)
        if len(self.blocks) != len(_STAGES):
            raise ConfigError(
                f"blocks is {self.blocks}, {len(self.blocks)} stages; MobileNetV2 has {len(_STAGES)}."
            )
        check_stages(self.blocks, self.image_size, shrinks=_SHRINKS[self.stem])

    def channels(self, at_full_width: int) -> int:
        """Scale a number of channels to the network's width."""
        return max(1, at_full_width * self.width // FULL_WIDTH)


class AdaptiveMobileNet(AdaptiveBackbone):
    """A MobileNetV2 whose stages' paths are gated layers; the training form of the backbone contract.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    family = "adaptive_mobilenet"
    config: AdaptiveMobileNetConfig

    def __init__(self, config: AdaptiveMobileNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        always = (config.stem_bits,)
        stem_stride, *strides = _STRIDES[config.stem]
        self.stem_conv = FractionalConv2d(
            config.in_channels,
            config.width,
            always,
            stride=stem_stride,
            signed_input=True,
            per_channel=config.per_channel,
        )
        channels = config.channels(_BEFORE)
        self.before = InvertedResidual(
            config.width,
            channels,
            always,
            expansion=1,
            signed_input=False,
            per_channel=config.per_channel,
        )
        layers: list[nn.Module] = []
        for full, n_blocks, stride in zip(_STAGES, config.blocks, strides, strict=True):
            inputs, channels = channels, config.channels(full)
            layers += make_stage(
                partial(self._make_block, inputs, channels, first_stride=stride),
                n_blocks,
                config,
            )
        self.blocks = nn.ModuleList(layers)
        inputs, channels = channels, config.channels(_AFTER)
        self.after = InvertedResidual(
            inputs, channels, always, expansion=_EXPANSION, per_channel=config.per_channel
        )
        inputs, channels = channels, config.channels(_LAST)
        self.last_conv = FractionalConv2d(
            inputs,
            channels,
            always,
            kernel_size=1,
            signed_input=True,
            per_channel=config.per_channel,
        )
        self.classifier = FractionalLinear(channels, config.n_classes, bits=config.stem_bits)
        self.finish_making(signed=True)

    @property
    def never_gated(self) -> Sequence[nn.Module]:
        """Stem, mandatory blocks, and what follows the stages."""
        ends = [self.stem_conv, self.before, self.after, self.last_conv, self.classifier]
        return [*ends, *self.mandatory]

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
        return InvertedResidual(
            in_channels if n == 0 else out_channels,
            out_channels,
            bits,
            expansion=_EXPANSION,
            stride=first_stride if n == 0 else 1,
            per_channel=self.config.per_channel,
            norm_sets=norm_sets,
        )

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, channels, h, w]``."""
        hidden = self.stem_conv(self.normalise(images), self.stem_bits).clamp(0.0, HIGHEST)
        return cast("Tensor", self.before(hidden, self.stem_bits))

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        hidden = self.last_conv(self.after(hidden, self.stem_bits), self.stem_bits)
        return cast("Tensor", self.classifier(pool(hidden.clamp(0.0, HIGHEST)))).float()

    def prepare(self, dtype: torch.dtype = torch.float32) -> "PreparedAdaptiveMobileNet":
        """Return the frozen form: norms folded, weights quantized once per option."""
        return PreparedAdaptiveMobileNet(self, dtype=dtype)


class PreparedAdaptiveMobileNet(PreparedBackbone):
    """A frozen MobileNetV2 of adaptive depth; see ``PreparedBackbone``.

    Args:
        source: The trained backbone. Later changes to it do not reach this copy.
        dtype: float32, or bfloat16 where the hardware is fast at it. The stem and the head stay in float32.
    """

    def __init__(self, source: AdaptiveMobileNet, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(source, dtype=dtype)
        bits = self.stem_bits = source.stem_bits
        self.stem_conv = PreparedConv2d(source.stem_conv, bits, dtype=torch.float32)
        self.before = source.before.prepare(dtype=torch.float32)
        self.blocks = nn.ModuleList(
            cast("AdaptiveLayer", layer).prepare(dtype=dtype) for layer in source.blocks
        )
        self.after = source.after.prepare(dtype=torch.float32)
        self.last_conv = PreparedConv2d(source.last_conv, bits, dtype=torch.float32)
        self.classifier = PreparedLinear(source.classifier)
        self.freeze()

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, channels, h, w]``."""
        hidden = self.stem_conv(self.normalise(images)).clamp_(0.0, HIGHEST)
        return cast("Tensor", self.before(hidden, self.stem_bits)).to(self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        hidden = self.last_conv(self.after(hidden.float(), self.stem_bits))
        return cast("Tensor", self.classifier(pool(hidden.clamp_(0.0, HIGHEST))))
