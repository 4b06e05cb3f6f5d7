"""Prices that hold budgets: each rises while more is spent than its budget and falls while less is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfs_rl.errors import CheckpointError

_LARGEST_RISE = 1.0
"""Of the relative overspending that moves a price: a gate begins at many times its budget."""
_CHEAPEST, _DEAREST = 1e-6, 1e6
"""Bounds of a price, which a product could otherwise lose to 0 or infinity."""


class DialPrices:
    """One price for each of some evenly spaced positions of a dial, and geometric means of two between them.

    This is dual ascent on the Lagrangian of a constraint on the mean cost, with multiplicative updates.

    Args:
        n: How many positions; 1 holds a single budget.
        price: What all of them begin with, above 0.
    """

    def __init__(self, n: int, price: float) -> None:
        self.knots = torch.full((n,), price, dtype=torch.float64)

    def at(self, positions: Tensor) -> Tensor:
        """Return the price at each position, float64 ``[batch]``."""
        return (self._shares(positions) @ self.knots.log()).exp()

    def follow(self, positions: Tensor, relative: Tensor, *, rate: float) -> None:
        """Move the prices after a batch.

        Args:
            positions: Of each image, ``[batch]``.
            relative: What each of them spent, relative to its budget, ``[batch]``.
            rate: Change of a price's logarithm at twice the budget. Prices of which the batch shows nothing stay.
        """
        shares = self._shares(positions)  # [batch, knots]
        seen = shares.sum(dim=0)
        over = (shares.T @ (relative.double() - 1.0)) / seen.clamp(min=1e-12)
        moved = rate * over.clamp(-_LARGEST_RISE, _LARGEST_RISE) * (seen > 0)
        self.knots = (self.knots * moved.exp()).clamp(_CHEAPEST, _DEAREST)

    def restore(self, knots: Sequence[float]) -> None:
        """Go back to ``knots``.

        Raises:
            CheckpointError: If they are another number.
        """
        if len(knots) != len(self.knots):
            raise CheckpointError(
                f"the checkpoint holds {len(knots)} prices where this run has {len(self.knots)}."
            )
        self.knots = torch.tensor(knots, dtype=torch.float64)

    def _shares(self, positions: Tensor) -> Tensor:
        """Return how much of each knot each image has, float64 ``[batch, knots]``; rows sum to 1."""
        last = len(self.knots) - 1
        if last == 0:
            return torch.ones(len(positions), 1, dtype=torch.float64)
        scaled = positions.double()[:, None] * last  # [batch, 1]
        return (1.0 - (scaled - torch.arange(last + 1)).abs()).clamp(min=0.0)
