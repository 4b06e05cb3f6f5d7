"""Base of the backbones that a name describes: their shared configuration and constructor."""

from dataclasses import dataclass

from dfs_rl.backbones.base import Backbone
from dfs_rl.costs import ALLOWED_BITS, DEFAULT_BITS, SKIP, BitOptions
from dfs_rl.data import ChannelStatistics
from dfs_rl.data.images import MAX_CHANNELS, MIN_CLASSES, MIN_SIDE
from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape and precision of a network; the settings that all of them have.

    Attributes:
        width: Channels of the first stage.
        in_channels: Image channels, 1 to 4.
        n_classes: Classes, at least 2.
        image_size: Height and width of the images in pixels, at least 4.
        bits: Bit options of every gated layer, see ``BitOptions``.
        stem_bits: Precision of everything that is never gated.
        per_channel: One weight scale per output channel instead of one per layer.

    Raises:
        ConfigError: If a value is outside its range.
    """

    width: int
    in_channels: int = 3
    n_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        if BitOptions(self.bits).values == (SKIP,):
            raise ConfigError(
                "bits is [0], with which no layer ever runs; add a bit width above 0."
            )
        if self.width < 1:
            raise ConfigError(f"width is {self.width}; at least 1 channel is needed.")
        if not 1 <= self.in_channels <= MAX_CHANNELS:
            raise ConfigError(
                f"in_channels is {self.in_channels}; allowed are 1 to {MAX_CHANNELS}."
            )
        if self.n_classes < MIN_CLASSES:
            raise ConfigError(
                f"n_classes is {self.n_classes}; a classifier needs at least {MIN_CLASSES}."
            )
        if min(self.image_size) < MIN_SIDE:
            raise ConfigError(
                f"image_size is {self.image_size}; sides of at least {MIN_SIDE} pixels are needed."
            )
        if self.stem_bits == SKIP or self.stem_bits not in ALLOWED_BITS:
            raise ConfigError(
                f"stem_bits is {self.stem_bits}; allowed are {list(ALLOWED_BITS[1:])}."
            )

    @property
    def run_bits(self) -> tuple[int, ...]:
        """Bit options without 0, at which a gated layer runs."""
        return tuple(bits for bits in self.bits if bits != SKIP)


class Network(Backbone):
    """A backbone that its configuration describes completely.

    Args:
        config: Shape and precision.
        statistics: Mean and deviation of the training images' channels, in [0, 1] units.
    """

    def __init__(self, config: NetworkConfig, statistics: ChannelStatistics) -> None:
        super().__init__(
            config,
            statistics,
            bits=config.bits,
            image_shape=(config.in_channels, *config.image_size),
            n_classes=config.n_classes,
            stem_bits=config.stem_bits,
        )
