"""What the configurations of all networks that have a name have in common, and what of it is possible."""

from typing import Protocol

from dfs_rl.backbones.base import Backbone
from dfs_rl.costs import ALLOWED_BITS, SKIP, BitOptions
from dfs_rl.data import ChannelStatistics
from dfs_rl.data.images import MAX_CHANNELS, MIN_CLASSES, MIN_SIDE
from dfs_rl.errors import ConfigError


class NetworkShape(Protocol):
    """The settings that every such configuration has; see ``ResNetConfig`` for what they mean."""

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def in_channels(self) -> int: ...  # noqa: D102
    @property
    def n_classes(self) -> int: ...  # noqa: D102
    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def bits(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def stem_bits(self) -> int: ...  # noqa: D102


def check_network(shape: NetworkShape) -> None:
    """Refuse what no network can be.

    Raises:
        ConfigError: If a value is outside its range.
    """
    if BitOptions(shape.bits).values == (SKIP,):
        raise ConfigError("bits is [0], with which no layer can ever run; add a bit width above 0.")
    if shape.width < 1:
        raise ConfigError(f"width is {shape.width}; at least 1 channel is needed.")
    if not 1 <= shape.in_channels <= MAX_CHANNELS:
        raise ConfigError(f"in_channels is {shape.in_channels}; allowed are 1 to {MAX_CHANNELS}.")
    if shape.n_classes < MIN_CLASSES:
        raise ConfigError(
            f"n_classes is {shape.n_classes}; a classifier needs at least {MIN_CLASSES}."
        )
    if min(shape.image_size) < MIN_SIDE:
        raise ConfigError(
            f"image_size is {shape.image_size}; sides of at least {MIN_SIDE} pixels are needed."
        )
    if shape.stem_bits == SKIP or shape.stem_bits not in ALLOWED_BITS:
        raise ConfigError(f"stem_bits is {shape.stem_bits}; allowed are {list(ALLOWED_BITS[1:])}.")


class ShapedBackbone(Backbone):
    """A backbone of which the configuration says everything.

    Args:
        config: Shape and precision.
        statistics: Mean and standard deviation of the training images' channels, in [0, 1] units.
    """

    def __init__(self, config: NetworkShape, statistics: ChannelStatistics) -> None:
        super().__init__(
            config,
            statistics,
            bits=config.bits,
            image_shape=(config.in_channels, *config.image_size),
            n_classes=config.n_classes,
            stem_bits=config.stem_bits,
        )
