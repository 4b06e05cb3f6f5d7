"""What the names of networks stand for."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from dfs_rl.backbones.adaptive_layer import MIN_BLOCKS
from dfs_rl.backbones.adaptive_mobilenet import AdaptiveMobileNet, AdaptiveMobileNetConfig
from dfs_rl.backbones.adaptive_resnet import AdaptiveResNet, AdaptiveResNetConfig, BlockKind
from dfs_rl.backbones.adaptive_swin import AdaptiveSwin, AdaptiveSwinConfig
from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import Recipe
from dfs_rl.backbones.resnet import ResNet, ResNetConfig
from dfs_rl.backbones.vit import (
    STAGE,
    AdaptiveVisionTransformer,
    AdaptiveVisionTransformerConfig,
    VisionTransformer,
    VisionTransformerConfig,
)
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError

BOTTLENECKS = {
    "bottleneck26": (2, 2, 2, 2),
    "bottleneck50": (3, 4, 6, 3),
    "bottleneck101": (3, 4, 23, 3),
    "bottleneck152": (3, 8, 36, 3),
}
"""Blocks of each stage of the ResNets for ImageNet; named apart, since there is a CIFAR ResNet of 50 layers too."""
SWINS = {"swin_tiny": (2, 2, 6, 2), "swin_small": (2, 2, 18, 2)}
"""Blocks of each stage of the Swin transformers."""
MOBILENET = "mobilenetv2"
SETTINGS = ("first_block", "granularity", "stem", "patch", "heads", "gate_branches")
"""Settings that only some networks have."""
_CIFAR_STAGES = 3
_BOTTLENECK_WIDTH = 64


class Stages(NamedTuple):
    """The kind of a ResNet's blocks, and how many each stage has."""

    block: BlockKind
    blocks: tuple[int, ...]


class Network(NamedTuple):
    """What a name stands for with one of the recipes.

    Attributes:
        backbone: Takes a configuration and channel statistics.
        config: Takes the settings that all networks have, and its own.
        settings: Which of ``SETTINGS`` it has.
    """

    backbone: Callable[[Any, ChannelStatistics], Backbone]
    config: Callable[..., Any]
    settings: tuple[str, ...]

    def make(
        self,
        statistics: ChannelStatistics,
        **settings: Any,  # noqa: ANN401 - each configuration has its own
    ) -> Backbone:
        """Make it, untrained.

        Raises:
            ConfigError: If there is none of that shape.
        """
        return self.backbone(self.config(**settings), statistics)


def network_of(name: str, recipe: Recipe) -> Network:
    """Look up what a name stands for.

    Raises:
        ConfigError: If there is no such network, or the recipe does not train it.
    """
    transformer = _number_after("vit", name)
    if recipe == "adn":
        if transformer is not None:
            return _adaptive_transformer(name, transformer)
        if name in SWINS:
            return _swin(SWINS[name])
        return _mobilenet() if name == MOBILENET else _adaptive_resnet(stages_of(name))
    if name in (MOBILENET, *BOTTLENECKS, *SWINS):
        raise ConfigError(
            f"backbone is {name!r}, a network of adaptive depth, which the recipe adn trains; add --recipe adn."
        )
    if transformer is not None:
        config = partial(VisionTransformerConfig, depth=transformer)
        settings = ("patch", "heads", "gate_branches")
        return Network(VisionTransformer, config, settings)
    depth = _number_after("resnet", name)
    if depth is None:
        raise ConfigError(
            f"backbone is {name!r}; allowed are resnet8, resnet14, resnet20, ... with 6 n + 2 layers, vit12 and others of as many "
            "blocks, or module:function."
        )
    return Network(ResNet, partial(ResNetConfig, depth=depth), ("first_block",))


def stages_of(name: str) -> Stages:
    """Read the stages of a ResNet of adaptive depth out of its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name in BOTTLENECKS:
        return Stages("bottleneck", BOTTLENECKS[name])
    depth = _number_after("resnet", name)
    if depth is not None and (depth - 2) % 6 == 0:
        n_blocks = (depth - 2) // 6
        if n_blocks >= MIN_BLOCKS:
            return Stages("basic", (n_blocks,) * _CIFAR_STAGES)
    raise ConfigError(
        f"backbone is {name!r}; with the recipe adn allowed are resnet14, resnet20, ... with 6 n + 2 layers, "
        f"{', '.join([*BOTTLENECKS, MOBILENET, *SWINS])}, and vit6, vit9, vit12, ... with stages of {STAGE} blocks."
    )


def _adaptive_resnet(stages: Stages) -> Network:
    config = partial(AdaptiveResNetConfig, block=stages.block, blocks=stages.blocks)
    if stages.block == "bottleneck":
        config = partial(config, width=_BOTTLENECK_WIDTH)
    return Network(AdaptiveResNet, config, ("granularity", "stem"))


def _mobilenet() -> Network:
    return Network(AdaptiveMobileNet, AdaptiveMobileNetConfig, ("granularity", "stem"))


def _swin(blocks: tuple[int, ...]) -> Network:
    config = partial(AdaptiveSwinConfig, blocks=blocks)
    return Network(AdaptiveSwin, config, ("patch", "heads", "granularity"))


def _adaptive_transformer(name: str, depth: int) -> Network:
    if depth == 0 or depth % STAGE:
        raise ConfigError(
            f"backbone is {name!r}; with the recipe adn a transformer has stages of {STAGE} blocks: vit6, vit9, vit12, ..."
        )
    config = partial(AdaptiveVisionTransformerConfig, blocks=(STAGE,) * (depth // STAGE))
    settings = ("patch", "heads", "granularity")
    return Network(AdaptiveVisionTransformer, config, settings)


def _number_after(prefix: str, name: str) -> int | None:
    """Read the number out of a name such as resnet20; ``None`` where it is no such name."""
    number = re.fullmatch(f"{prefix}(0|[1-9][0-9]*)", name)
    return int(number[1]) if number else None
