"""What the names of networks stand for."""

from typing import NamedTuple

from dfs_rl.backbones.adaptive_layer import MIN_BLOCKS
from dfs_rl.backbones.adaptive_resnet import BlockKind
from dfs_rl.errors import ConfigError

BOTTLENECKS = {
    "bottleneck26": (2, 2, 2, 2),
    "bottleneck50": (3, 4, 6, 3),
    "bottleneck101": (3, 4, 23, 3),
    "bottleneck152": (3, 8, 36, 3),
}
"""Blocks of each stage of the ResNets for ImageNet; named apart, since there is a CIFAR ResNet of 50 layers too."""
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
    depth = name.removeprefix("resnet")
    if depth == name or not depth.isdecimal():
        raise ConfigError(
            f"backbone is {name!r}; allowed are resnet8, resnet14, resnet20, ... with 6 n + 2 layers."
        )
    return int(depth)


def stages_of(name: str) -> Stages:
    """Read the stages of a network of adaptive depth out of its name.

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
        f"backbone is {name!r}; with the recipe adn allowed are resnet14, resnet20, ... with 6 n + 2 layers, and "
        f"{', '.join(BOTTLENECKS)}."
    )
