"""ResNets (He et al., CVPR 2016) at any bit option, of fixed and of adaptive depth."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.adaptive import MIN_BLOCKS, AdaptiveConfig, AdaptiveNetwork, make_conv_stages
from dfs_rl.backbones.network import Network, NetworkConfig, stem_convolution
from dfs_rl.backbones.registry import register_backbone
from dfs_rl.costs import SKIP
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.inference import convolve_in_turn
from dfs_rl.quantization.modules import FractionalConvNorm, FractionalLinear
from dfs_rl.utils.config import PositiveInt, configuration
from dfs_rl.utils.constants import FirstBlock, Stem

MIN_DEPTH, MAX_DEPTH = 8, 1202  # the deepest in He et al.
CIFAR_STAGES = 3
MAX_STAGES = 8
EXPANSION = 4
"""Ratio of a bottleneck's output channels to those of its 3 x 3 convolution."""
_IMAGENET = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BlockKind = Literal["basic", "bottleneck"]


@configuration
class ResNetConfig(NetworkConfig):
    """Shape and precision of a CIFAR ResNet (section 4.2 of the paper); see ``NetworkConfig``.

    Attributes:
        depth: Number of weighted layers, 6 n + 2: 8, 14, 20, 32, 38, 56, 74, 110, ...
        width: Channels of the first stage; the next two have twice and four times as many.
        first_block: ``"gated"`` like the others, or ``"always"``: it runs as part of the stem, as
            in SkipNet and DFS.
        affine_skips: Whether skipped blocks correct their shortcut, see ``ResidualBlock``.
    """

    depth: int = 20
    width: PositiveInt = 16
    first_block: FirstBlock = "gated"
    affine_skips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MIN_DEPTH <= self.depth <= MAX_DEPTH or (self.depth - 2) % 6:
            raise ConfigError(
                f"depth is {self.depth}; a CIFAR ResNet has 6 n + 2 layers: 8, 14, 20, 32, 38, "
                f"..., {MAX_DEPTH}."
            )


@configuration
class AdaptiveResNetConfig(AdaptiveConfig):
    """Shape and precision of a ResNet of adaptive depth; see ``AdaptiveConfig``.

    Attributes:
        blocks: Blocks of each stage, at least 2; (3, 3, 3) basic ones make ResNet-20, (3, 4, 6, 3)
            bottlenecks ResNet-50.
        block: ``"basic"``, two 3 x 3 convolutions and a shortcut without parameters, or
            ``"bottleneck"``.
        stem: ``"cifar"``, a 3 x 3 convolution, or ``"imagenet"``, a 7 x 7 one with stride 2 and max
            pooling.
        width: Channels of the first stage's 3 x 3 convolutions; each stage doubles them.
    """

    blocks: tuple[int, ...] = (3, 3, 3)
    block: BlockKind = "basic"
    stem: Stem = "cifar"
    width: PositiveInt = 16

    def __post_init__(self) -> None:
        if len(self.blocks) > MAX_STAGES:
            raise ConfigError(
                f"blocks is {self.blocks}, {len(self.blocks)} stages; allowed are 1 to "
                f"{MAX_STAGES}."
            )
        super().__post_init__()
        if self.depth > MAX_DEPTH:
            raise ConfigError(
                f"blocks is {self.blocks}, which makes {self.depth} layers; at most {MAX_DEPTH} "
                "are allowed."
            )

    @property
    def shrinkage(self) -> int:
        """Factor by which stem and stages shrink the images."""
        return (1 << len(self.blocks) - 1) * (4 if self.stem == "imagenet" else 1)

    @property
    def depth(self) -> int:
        """Number of weighted layers, projections aside."""
        return (3 if self.block == "bottleneck" else 2) * sum(self.blocks) + 2


class ResidualBlock(nn.Module):
    """Two convolutions and a parameter-free shortcut; 0 bit leaves the shortcut alone.

    A bottleneck has three, and a projection where the shape changes (figure 5). Its 3 x 3
    convolution has the stride, as in torchvision. The projection has one set of norms.

    See ``FractionalConvNorm`` for the other arguments.

    Args:
        out_channels: At least ``in_channels``; of a bottleneck a multiple of ``EXPANSION``.
        bits: The non-zero bit widths of the block.
        affine_skip: Whether a skipped block multiplies and shifts each channel of its shortcut, in
            place of what it would add: whatever runs next then sees about the same statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bits: Sequence[int],
        *,
        bottleneck: bool = False,
        stride: int = 1,
        per_channel: bool = False,
        norm_sets: int = 1,
        affine_skip: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.runs_when_skipped = affine_skip
        if affine_skip:
            self.skip_scale = nn.Parameter(torch.ones(out_channels, 1, 1))
            self.skip_shift = nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.extra_channels = out_channels - in_channels
        self.conv3: FractionalConvNorm | None = None
        self.projection: FractionalConvNorm | None = None
        middle = out_channels // EXPANSION
        make = partial(FractionalConvNorm, bits=bits, per_channel=per_channel)
        if bottleneck:
            self.conv1 = make(in_channels, middle, kernel_size=1, norm_sets=norm_sets)
            self.conv2 = make(middle, middle, stride=stride, norm_sets=norm_sets)
            self.conv3 = make(middle, out_channels, kernel_size=1, norm_sets=norm_sets)
            if stride > 1 or self.extra_channels:
                self.projection = make(in_channels, out_channels, kernel_size=1, stride=stride)
        else:
            self.conv1 = make(in_channels, out_channels, stride=stride, norm_sets=norm_sets)
            self.conv2 = make(out_channels, out_channels, norm_sets=norm_sets)

    def forward(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]`` at ``bits``."""
        shortcut = hidden
        if self.projection is not None:
            shortcut = self.projection(hidden, bits)
        elif self.stride > 1 or self.extra_channels:  # option A: no weights and no MACs
            subsampled = hidden[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(subsampled, (0, 0, 0, 0, 0, self.extra_channels))
        if bits == SKIP:
            if not self.runs_when_skipped:
                return shortcut
            return (shortcut * self.skip_scale + self.skip_shift).relu_().to(hidden.dtype)
        convolutions = [c for c in (self.conv1, self.conv2, self.conv3) if c is not None]
        return convolve_in_turn(convolutions, hidden, bits, norm_set).add_(shortcut).relu_()

    @torch.no_grad()
    def fit_skip(self, hidden: Tensor, output: Tensor) -> None:
        """Give an untrained skip, for this input, the mean and deviation of the block's output."""
        if not self.runs_when_skipped:
            return
        axes = (0, 2, 3)
        ours, mean = torch.std_mean(self(hidden, SKIP).float(), axes, keepdim=True)
        theirs, wanted = torch.std_mean(output.float(), axes, keepdim=True)
        # At most twice: channels that are nearly constant stay so.
        scale = torch.where(theirs > 0, theirs / torch.maximum(ours, theirs / 2), 1.0)
        self.skip_scale.copy_(scale[0])
        self.skip_shift.copy_((wanted - mean * scale)[0])


class ResNet(Network):
    """A CIFAR ResNet whose residual blocks are gated layers; see ``Backbone``."""

    family = "resnet"
    config: ResNetConfig

    def __init__(self, config: ResNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.stem_conv = stem_convolution(config)
        widths = [config.width * 2**stage for stage in range(CIFAR_STAGES)]
        outputs = [w for w in widths for _ in range((config.depth - 2) // 6)]
        inputs = [config.width, *outputs[:-1]]
        always = 1 if config.first_block == "always" else 0
        blocks = [
            ResidualBlock(
                i,
                o,
                (config.stem_bits,) if n < always else config.run_bits,
                stride=2 if o > i else 1,
                per_channel=config.per_channel,
                affine_skip=config.affine_skips and n >= always,
            )
            for n, (i, o) in enumerate(zip(inputs, outputs, strict=True))
        ]
        self.stem_blocks = nn.ModuleList(blocks[:always])
        self.blocks = nn.ModuleList(blocks[always:])
        self.classifier = FractionalLinear(widths[-1], config.n_classes, bits=config.stem_bits)
        self.finish_making()

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of gated blocks of each stage."""
        each = (self.config.depth - 2) // 6
        return each - len(self.stem_blocks), *[each] * (CIFAR_STAGES - 1)

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first gated block, ``[batch, width, h, w]``."""
        hidden = self.stem_conv(self.normalise(images), self.stem_bits).relu_()
        for block in self.stem_blocks:
            hidden = block(hidden, self.stem_bits)
        return cast("Tensor", hidden)


class AdaptiveResNet(AdaptiveNetwork):
    """A ResNet whose stages' paths are gated layers; see ``Backbone`` and ``AdaptiveLayer``."""

    family = "adaptive_resnet"
    config: AdaptiveResNetConfig

    def __init__(self, config: AdaptiveResNetConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics)
        self.pools = config.stem == "imagenet"
        shape = {"kernel_size": 7, "stride": 2} if self.pools else {}
        self.stem_conv = stem_convolution(config, **shape)
        bottleneck = config.block == "bottleneck"
        first = config.width * (EXPANSION if bottleneck else 1)
        channels = [config.width, *(first << stage for stage in range(len(config.blocks)))]
        block = partial(ResidualBlock, bottleneck=bottleneck)
        strides = [2 if stage else 1 for stage in range(len(config.blocks))]
        self.blocks = make_conv_stages(block, channels, strides, config)
        self.classifier = FractionalLinear(channels[-1], config.n_classes, bits=config.stem_bits)
        self.finish_making()

    def stem(self, images: Tensor) -> Tensor:
        """Return the activation before the first stage, ``[batch, width, h, w]``."""
        hidden = self.stem_conv(self.normalise(images), self.stem_bits).relu_()
        return functional.max_pool2d(hidden, 3, stride=2, padding=1) if self.pools else hidden


for _depth, _blocks in _IMAGENET.items():
    register_backbone(
        f"resnet{_depth}",
        AdaptiveResNetConfig,
        recipe="adn",
        defaults={"width": 64, "stem": "imagenet"},
        block="bottleneck",
        blocks=_blocks,
    )(AdaptiveResNet)
for _depth in range(MIN_DEPTH, MAX_DEPTH + 1, 6):
    # Where there is an ImageNet network of as many layers, the short name is that one's.
    for _name in (f"cifar_resnet{_depth}", f"resnet{_depth}")[: 1 if _depth in _IMAGENET else 2]:
        register_backbone(_name, ResNetConfig, depth=_depth)(ResNet)
        if (_depth - 2) // 6 >= MIN_BLOCKS:
            register_backbone(
                _name,
                AdaptiveResNetConfig,
                recipe="adn",
                block="basic",
                blocks=((_depth - 2) // 6,) * CIFAR_STAGES,
            )(AdaptiveResNet)
            register_backbone(
                _name, ResNetConfig, recipe="elastic", depth=_depth, affine_skips=True
            )(ResNet)
