"""Parts of a network that cost something apart from its gated layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """A part of the network that is never gated, with its MACs per image.

    Attributes:
        layer: The gated layer that it runs with, or the number of layers for the head: an image
            that exits earlier is spared it. ``None`` runs before all of them.
    """

    name: str
    macs: int
    bits: int
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExitCost:
    """A classifier at which an image can leave the network, after ``after`` gated layers."""

    after: int
    macs: int
    bits: int


def check_exits(after: Sequence[int], n_layers: int) -> None:
    """Check the numbers of gated layers before the exits.

    Raises:
        ConfigError: If they are not ascending numbers from 0 to one less than the layers.
    """
    if list(after) != sorted(set(after) & set(range(n_layers))):
        raise ConfigError(
            f"exits are asked for after {list(after)} gated layers; allowed are ascending numbers "
            f"from 0 to {n_layers - 1}."
        )
