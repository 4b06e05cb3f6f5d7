"""Networks made of a configuration: its common part, stems, and heads that pool activations."""

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone
from dfs_rl.costs import ALLOWED_BITS, DEFAULT_BITS, SKIP, BitOptions
from dfs_rl.data import ChannelStatistics
from dfs_rl.data.images import MAX_CHANNELS, MIN_CLASSES, MIN_SIDE
from dfs_rl.errors import ConfigError
from dfs_rl.quantization.modules import FractionalConvNorm
from dfs_rl.utils.config import PositiveInt, configuration

_Side = Annotated[int, Field(ge=MIN_SIDE)]


def check_precision(bits: tuple[int, ...], stem_bits: int) -> None:
    """Check that the bit widths exist, and that gated layers can run."""
    if BitOptions(bits).values == (SKIP,):
        raise ConfigError("bits is [0], with which no layer ever runs; add a bit width above 0.")
    if stem_bits == SKIP or stem_bits not in ALLOWED_BITS:
        raise ConfigError(f"stem_bits is {stem_bits!r}; allowed are {list(ALLOWED_BITS[1:])}.")


@configuration
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

    width: PositiveInt
    in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3
    n_classes: Annotated[int, Field(ge=MIN_CLASSES)] = 10
    image_size: tuple[_Side, _Side] = (32, 32)
    bits: tuple[int, ...] = DEFAULT_BITS
    stem_bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_precision(self.bits, self.stem_bits)

    @property
    def run_bits(self) -> tuple[int, ...]:
        """Bit options without 0, at which a gated layer runs."""
        return tuple(bits for bits in self.bits if bits != SKIP)


class Network(Backbone):
    """A backbone that its configuration describes completely; it has a ``classifier``."""

    classifier: nn.Module

    def __init__(self, config: NetworkConfig, statistics: ChannelStatistics) -> None:
        super().__init__(config, statistics, (config.in_channels, *config.image_size))

    def head(self, hidden: Tensor) -> Tensor:
        """Average over positions and classify: logits, float32 ``[batch, classes]``."""
        pooled = hidden.mean(dim=(2, 3), dtype=torch.float32)
        return cast("Tensor", self.classifier(pooled)).float()


def stem_convolution(config: NetworkConfig, **shape: int) -> FractionalConvNorm:
    """Make the first convolution of a network; ``shape`` is its kernel size and stride."""
    return FractionalConvNorm(
        config.in_channels,
        config.width,
        (config.stem_bits,),
        signed_input=True,
        per_channel=config.per_channel,
        **shape,
    )
