"""Gated layers and stages of adaptive-depth networks (Kang et al., "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS 2024).

A stage of residual blocks begins with mandatory ones and ends with a path that can be skipped. The mandatory blocks have two sets
of norms: the first is used where the path runs, the second where it is skipped, because what follows then expects of them what
the path would have made.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.common_config import NetworkShape, ShapedBackbone
from dfs_rl.costs import SKIP
from dfs_rl.errors import ConfigError

NORM_SETS = 2
MIN_BLOCKS = 2
Stem = Literal["cifar", "imagenet"]
Granularity = Literal["path", "block"]


def mandatory_count(n_blocks: int) -> int:
    """Return how many of a stage's blocks always run: the first half, rounded up, but never all of them."""
    return min(n_blocks - 1, (n_blocks + 1) // 2)


class PreparableBlock(Protocol):
    """A residual block with sets of norms, see ``ResidualBlock``."""

    def __call__(self, hidden: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Run it; 0 bit leaves its shortcut."""
        ...

    def prepare(self, *, dtype: torch.dtype, norm_set: int = 0) -> nn.Module:
        """Return the frozen form."""
        ...


class AdaptiveLayer(nn.Module):
    """Mandatory blocks, and a path that a gate decides about; 0 bit skips the path.

    Args:
        mandatory: Blocks that always run, with two sets of norms; at least one.
        path: Blocks that run at the bits that are chosen; at least one.
        mandatory_bits: The precision of the mandatory ones.
    """

    runs_when_skipped = True

    def __init__(
        self, mandatory: Sequence[nn.Module], path: Sequence[nn.Module], *, mandatory_bits: int
    ) -> None:
        super().__init__()
        self.mandatory = nn.ModuleList(mandatory)
        self.path = nn.ModuleList(path)
        self.mandatory_bits = mandatory_bits

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to what leaves the stage, ``[batch, out, h / stride, w / stride]``."""
        norm_set = norm_set_at(bits)
        for block in self.mandatory:
            hidden = block(hidden, self.mandatory_bits, norm_set)
        for block in self.path:
            hidden = block(hidden, bits)
        return hidden

    def prepare(self, *, dtype: torch.dtype) -> "PreparedAdaptiveLayer":
        """Return the frozen form."""
        return PreparedAdaptiveLayer(self, dtype=dtype)


class PreparedAdaptiveLayer(nn.Module):
    """The frozen form of an ``AdaptiveLayer``.

    Args:
        source: The trained layer.
        dtype: What it computes in.
    """

    runs_when_skipped = True

    def __init__(self, source: AdaptiveLayer, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.mandatory_bits = source.mandatory_bits
        self.mandatory = nn.ModuleList(
            nn.ModuleList(
                block.prepare(dtype=dtype, norm_set=norm_set)
                for block in cast("Sequence[PreparableBlock]", source.mandatory)
            )
            for norm_set in range(NORM_SETS)
        )
        self.path = nn.ModuleList(
            block.prepare(dtype=dtype) for block in cast("Sequence[PreparableBlock]", source.path)
        )

    def forward(self, hidden: Tensor, bits: int) -> Tensor:
        """Map ``[batch, in, h, w]`` to ``[batch, out, h / stride, w / stride]``; ``hidden`` is left as it is."""
        for block in cast("nn.ModuleList", self.mandatory[norm_set_at(bits)]):
            hidden = block(hidden, self.mandatory_bits)
        for block in self.path:
            hidden = block(hidden, bits)
        return hidden


class AdaptiveBackbone(ShapedBackbone):
    """What backbones of adaptive depth share."""

    @property
    def meaningful_bits(self) -> tuple[int, ...]:
        """All of them: what is left without any path is a network as well."""
        return self.options.values

    @property
    def mandatory(self) -> Sequence[nn.Module]:
        """The blocks that the gated layers run even when they are skipped."""
        return [layer.mandatory for layer in self.blocks if isinstance(layer, AdaptiveLayer)]

    @property
    def gated(self) -> Sequence[nn.Module]:
        """The blocks of the paths."""
        return [layer.path if isinstance(layer, AdaptiveLayer) else layer for layer in self.blocks]


class AdaptiveShape(NetworkShape, Protocol):
    """The settings that every configuration of a network of adaptive depth has."""

    @property
    def granularity(self) -> Granularity:
        """What is gated, see ``AdaptiveResNetConfig``."""
        ...


def make_stage(
    make_block: Callable[[int, Sequence[int], int], nn.Module],
    n_blocks: int,
    shape: AdaptiveShape,
) -> list[nn.Module]:
    """Make the gated layers of a stage, one or as many as its path has blocks.

    Args:
        make_block: Makes a block from its place in the stage, its bit widths and its number of sets of norms.
        n_blocks: How many, at least 2.
        shape: The network's configuration.
    """
    n_mandatory = mandatory_count(n_blocks)
    run_bits = tuple(b for b in shape.bits if b != SKIP)
    mandatory = [make_block(n, (shape.stem_bits,), NORM_SETS) for n in range(n_mandatory)]
    path = [make_block(n, run_bits, 1) for n in range(n_mandatory, n_blocks)]
    together = len(path) if shape.granularity == "path" else 1
    first = AdaptiveLayer(mandatory, path[:together], mandatory_bits=shape.stem_bits)
    return [first, *path[together:]]


def check_skippable(bits: Sequence[int]) -> None:
    """Refuse a menu that cannot skip.

    Raises:
        ConfigError: If it lacks 0 bit.
    """
    if SKIP not in bits:
        raise ConfigError(
            f"bits is {list(bits)}, but what adapts in an adaptive-depth network is which paths are skipped; add 0."
        )


def check_stages(blocks: Sequence[int], image_size: Sequence[int], *, shrinks: int) -> None:
    """Refuse stages that have nothing to skip, and images of which they leave nothing.

    Args:
        blocks: Of each stage.
        image_size: Height and width.
        shrinks: By what factor the network shrinks them.

    Raises:
        ConfigError: If they are too few or too small.
    """
    if not blocks or min(blocks) < MIN_BLOCKS:
        raise ConfigError(
            f"blocks is {tuple(blocks)}; a stage needs at least {MIN_BLOCKS}, one that always runs and one to skip."
        )
    if min(image_size) < shrinks:
        raise ConfigError(
            f"image_size is {tuple(image_size)}, of which stem and stages leave less than a pixel; sides of at least {shrinks} "
            "are needed."
        )


def norm_set_at(bits: int) -> int:
    """Which of the mandatory blocks' norms go with a path at ``bits``."""
    return int(bits == SKIP)
