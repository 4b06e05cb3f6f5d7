"""Lagrange multipliers that hold budgets: each rises while the cost is above its budget."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfs_rl.errors import CheckpointError

_LARGEST_RISE = 1.0
"""Of the relative overspending that moves a price: a gate begins at many times its budget."""
_CHEAPEST, _DEAREST = 1e-6, 1e6
"""Bounds of a price, which a product could otherwise lose to 0 or infinity."""


class DialPrices:
    """A multiplier at each of several evenly spaced preferences, interpolated geometrically.

    Dual ascent on the Lagrangian of a bound on the mean cost, with multiplicative updates.

    Args:
        n: Number of preferences; 1 holds a single budget.
        price: Initial value of all, above 0.
    """

    def __init__(self, n: int, price: float) -> None:
        self.knots = torch.full((n,), price, dtype=torch.float64)

    def at(self, positions: Tensor) -> Tensor:
        """Return the multiplier at each position, float64 ``[batch]``."""
        return (self._shares(positions) @ self.knots.log()).exp()

    def follow(self, positions: Tensor, relative: Tensor, *, rate: float) -> None:
        """Update the multipliers after a batch.

        Args:
            positions: Preference of each image, ``[batch]``.
            relative: Cost of each over its budget, ``[batch]``.
            rate: Change of a multiplier's logarithm at twice the budget. Multipliers without an
                image in the batch stay.
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
        """Return each image's share of each knot, float64 ``[batch, knots]``; rows sum to 1."""
        last = len(self.knots) - 1
        if last == 0:
            return torch.ones(len(positions), 1, dtype=torch.float64)
        scaled = positions.double()[:, None] * last  # [batch, 1]
        return (1.0 - (scaled - torch.arange(last + 1)).abs()).clamp(min=0.0)
