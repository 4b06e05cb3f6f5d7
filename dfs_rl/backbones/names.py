"""What the names of networks stand for."""

from typing import Any, NamedTuple

from dfs_rl.backbones.adaptive_layer import MIN_BLOCKS, AdaptiveBackbone
from dfs_rl.backbones.adaptive_mobilenet import AdaptiveMobileNet, AdaptiveMobileNetConfig
from dfs_rl.backbones.adaptive_resnet import AdaptiveResNet, AdaptiveResNetConfig, BlockKind
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError

BOTTLENECKS = {
    "bottleneck26": (2, 2, 2, 2),
    "bottleneck50": (3, 4, 6, 3),
    "bottleneck101": (3, 4, 23, 3),
    "bottleneck152": (3, 8, 36, 3),
}
"""Blocks of each stage of the ResNets for ImageNet; named apart, since there is a CIFAR ResNet of 50 layers too."""
MOBILENET = "mobilenetv2"
_CIFAR_STAGES = 3


class Stages(NamedTuple):
    """The kind of a ResNet's blocks, and how many each stage has."""

    block: BlockKind
    blocks: tuple[int, ...]


def depth_of(name: str) -> int:
    """Read the depth out of the name of a CIFAR ResNet.

    Raises:
        ConfigError: If it is none.
    """
    if name == MOBILENET or name in BOTTLENECKS:
        raise ConfigError(
            f"backbone is {name!r}, a network of adaptive depth, which the recipe adn trains; add --recipe adn."
        )
    depth = name.removeprefix("resnet")
    if depth == name or not depth.isdecimal():
        raise ConfigError(
            f"backbone is {name!r}; allowed are resnet8, resnet14, resnet20, ... with 6 n + 2 layers, or module:function."
        )
    return int(depth)


def adaptive_network(
    name: str,
    statistics: ChannelStatistics,
    **shape: Any,  # noqa: ANN401 - what their configurations share
) -> AdaptiveBackbone:
    """Make a network of adaptive depth.

    Args:
        name: What it is called.
        statistics: See ``Backbone``.
        **shape: The settings that ``AdaptiveResNetConfig`` and ``AdaptiveMobileNetConfig`` have in common.

    Raises:
        ConfigError: If there is none of that name or shape.
    """
    if name == MOBILENET:
        return AdaptiveMobileNet(AdaptiveMobileNetConfig(**shape), statistics)
    stages = stages_of(name)
    config = AdaptiveResNetConfig(block=stages.block, blocks=stages.blocks, **shape)
    return AdaptiveResNet(config, statistics)


def check_adaptive(name: str) -> None:
    """Refuse what is no name of a network of adaptive depth.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name != MOBILENET:
        stages_of(name)


def stages_of(name: str) -> Stages:
    """Read the stages of a ResNet of adaptive depth out of its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name in BOTTLENECKS:
        return Stages("bottleneck", BOTTLENECKS[name])
    depth = name.removeprefix("resnet")
    if depth != name and depth.isdecimal() and (int(depth) - 2) % 6 == 0:
        n_blocks = (int(depth) - 2) // 6
        if n_blocks >= MIN_BLOCKS:
            return Stages("basic", (n_blocks,) * _CIFAR_STAGES)
    raise ConfigError(
        f"backbone is {name!r}; with the recipe adn allowed are resnet14, resnet20, ... with 6 n + 2 layers, "
        f"{', '.join(BOTTLENECKS)} and {MOBILENET}."
    )
