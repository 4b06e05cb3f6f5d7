"""Early exits: classifiers behind gated layers, after which an image can leave the network.

A head is a linear classifier of the activation's means over the parts of a fine grid; a probe is
the same on a coarser grid.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE
from dfs_rl.backbones.probe import GRIDS, confidence

EXIT_GRID = max(GRIDS)
"""Rows and columns into which a head cuts an activation at most."""


class ExitHeads(nn.Module):
    """The heads of a backbone's exits, with statistics of their confidence.

    Args:
        after: Number of gated layers before each exit.
        heads: One for each, from pooled activations to logits.

    Attributes:
        confidence_mean: Mean of ``confidence`` of each head, float32 ``[heads, 3]``.
        confidence_std: Its standard deviation, likewise.
    """

    def __init__(self, after: Sequence[int], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.after = tuple(after)
        self.heads = nn.ModuleList(heads)
        self.confidence_mean: Tensor
        self.confidence_std: Tensor
        shape = (len(self.after), CONFIDENCE_SIZE)
        self.register_buffer("confidence_mean", torch.zeros(shape))
        self.register_buffer("confidence_std", torch.ones(shape))

    def __contains__(self, layer: int) -> bool:
        """Return whether there is a head before gated layer ``layer``."""
        return layer in self.after

    def answer(self, parts: Tensor, layer: int) -> Tensor:
        """Classify the activation before gated layer ``layer``.

        Args:
            parts: The pooled activation, float32 ``[batch, channels, parts of EXIT_GRID]``.
            layer: A layer with an exit.

        Returns:
            Logits, float32 ``[batch, classes]``.
        """
        return cast("Tensor", self.heads[self.after.index(layer)](parts.flatten(1)))

    def sureness(self, logits: Tensor, layer: int) -> Tensor:
        """Return the confidence of logits in standard deviations from its mean, ``[batch, 3]``."""
        i = self.after.index(layer)
        return (confidence(logits) - self.confidence_mean[i]) / self.confidence_std[i]
