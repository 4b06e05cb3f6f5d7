"""MobileNetV2 (Sandler et al., CVPR 2018) of adaptive depth, at any bit option."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from dfs_rl.backbones.adaptive import AdaptiveConfig, AdaptiveNetwork, make_conv_stages
from dfs_rl.backbones.network import stem_convolution
from dfs_rl.backbones.registry import register_backbone
from dfs_rl.costs import SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.modules import FractionalConvNorm, FractionalLinear
from dfs_rl.utils.config import PositiveInt, configuration
from dfs_rl.utils.constants import Stem

FULL_WIDTH = 32
_EXPANSION = 6
_BEFORE, _AFTER, _LAST = 16, 320, 1280  # channels outside the stages, at full width
_STAGES = (24, 32, 64, 96, 160)  # channels of the stages, likewise
_STRIDES: dict[Stem, tuple[int, ...]] = {  # of the stem and of the stages
    "imagenet": (2, 2, 2, 2, 1, 2),
    "cifar": (1, 1, 2, 2, 1, 2),
}


@configuration
class AdaptiveMobileNetConfig(AdaptiveConfig):
    """Shape and precision of a MobileNetV2 of adaptive depth; see ``AdaptiveConfig``.

    Attributes:
        blocks: Blocks of each of the five stages that have several, at least 2.
        stem: ``"imagenet"`` halves images five times, ``"cifar"`` three times.
        width: Channels of the first convolution, 32 in the paper; all others are in proportion.
    """

    blocks: tuple[int, ...] = (2, 3, 4, 3, 3)
    stem: Stem = "cifar"
    width: PositiveInt = FULL_WIDTH

    def __post_init__(self) -> None:
        if len(self.blocks) != len(_STAGES):
            raise ConfigError(
                f"blocks is {self.blocks}, {len(self.blocks)} stages; MobileNetV2 has "
                f"{len(_STAGES)}."
            )
        super().__post_init__()

    @property
    def shrinkage(self) -> int:
        """Factor by which stem and stages shrink the images."""
        return 32 if self.stem == "imagenet" else 8

    def channels(self, at_full_width: int) -> int:
        """Scale a number of channels to the network's width."""
        return max(1, at_full_width * self.width // FULL_WIDTH)


def relu6(x: Tensor) -> Tensor:
    """Clip to [0, 6]; in place where no gradient needs the input, so give a fresh tensor."""
    return x.clamp(0.0, 6.0) if x.requires_grad else x.clamp_(0.0, 6.0)


class InvertedResidual(nn.Module):
    """Widening, depthwise and narrowing convolution, a shortcut where the shape stays (figure 4).

    0 bit leaves the shortcut alone. The output can be negative. Arguments as for ``ResidualBlock``;
    ``expansion`` is the ratio of inner to input channels, and 1 leaves the first convolution out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        expansion: int = _EXPANSION,
        stride: int = 1,
        signed_input: bool = True,
        per_channel: bool = False,
        norm_sets: int = 1,
    ) -> None:
        super().__init__()
        inside = in_channels * expansion
        make = partial(FractionalConvNorm, bits=bits, per_channel=per_channel, norm_sets=norm_sets)
        made = []
        if expansion > 1:
            made.append(make(in_channels, inside, kernel_size=1, signed_input=signed_input))
            signed_input = False
        made.append(make(inside, inside, stride=stride, groups=inside, signed_input=signed_input))
        self.convolutions = nn.ModuleList([*made, make(inside, out_channels, kernel_size=1)])
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]`` at ``bits``."""
        if bits == SKIP and self.has_shortcut:
            return hidden
        *inner, last = self.convolutions
        branch = hidden
        for convolution in inner:
            branch = relu6(convolution(branch, bits, norm_set))
        branch = cast("Tensor", last(branch, bits, norm_set))
        return branch.add_(hidden) if self.has_shortcut else branch


@register_backbone("mobilenetv2", AdaptiveMobileNetConfig, recipe="adn")
class AdaptiveMobileNet(AdaptiveNetwork):
    """A MobileNetV2 whose stages' paths are gated layers; see ``Backbone``, ``AdaptiveLayer``."""

    family = "adaptive_mobilenet"
    config: AdaptiveMobileNetConfig

    def __init__(self, config: AdaptiveMobileNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        always, per_channel = (config.stem_bits,), config.per_channel
        stem_stride, *strides = _STRIDES[config.stem]
        channels = [config.channels(full) for full in (_BEFORE, *_STAGES)]
        after, last = config.channels(_AFTER), config.channels(_LAST)
        self.stem_conv = stem_convolution(config, stride=stem_stride)
        self.before = InvertedResidual(
            config.width,
            channels[0],
            always,
            expansion=1,
            signed_input=False,
            per_channel=per_channel,
        )
        self.blocks = make_conv_stages(InvertedResidual, channels, strides, config)
        self.after = InvertedResidual(channels[-1], after, always, per_channel=per_channel)
        self.last_conv = FractionalConvNorm(
            after, last, always, kernel_size=1, signed_input=True, per_channel=per_channel
        )
        self.classifier = FractionalLinear(last, config.n_classes, bits=config.stem_bits)
        self.finish_making(signed=True)

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, channels, h, w]``."""
        hidden = relu6(self.stem_conv(self.normalise(images), self.stem_bits))
        return cast("Tensor", self.before(hidden, self.stem_bits))

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``[batch, classes]``."""
        hidden = self.last_conv(self.after(hidden, self.stem_bits), self.stem_bits)
        return super().head(relu6(hidden))
