"""The gated layer of adaptive-depth networks (Kang et al., "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS 2024).

A stage of residual blocks begins with mandatory ones and ends with a path that can be skipped. The mandatory blocks have two sets
of norms: the first is used where the path runs, the second where it is skipped, because what follows then expects of them what
the path would have made.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dfs_rl.cost import SKIP

NORM_SETS = 2


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


def norm_set_at(bits: int) -> int:
    """Which of the mandatory blocks' norms go with a path at ``bits``."""
    return int(bits == SKIP)
