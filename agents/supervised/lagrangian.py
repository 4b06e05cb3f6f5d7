"""Lagrange multipliers, which hold the mean cost of a supervised gate to its budget."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfs_rl.errors import CheckpointError

_MAX_VIOLATION = 1.0
"""Bound on the relative violation in an update; initial costs are many times the budget."""
_MIN, _MAX = 1e-6, 1e6
"""Bounds of a multiplier, which repeated products could otherwise move to 0 or infinity."""


class LagrangeMultipliers:
    """Lagrange multipliers at evenly spaced preferences, interpolated geometrically.

    The updates are dual ascent on the Lagrangian of a bound on the mean cost, in the multipliers'
    logarithms: ``rate`` is the change of a logarithm per update at twice the budget. All ``n``
    multipliers, 1 for a single budget, start at ``initial``.
    """

    def __init__(self, n: int, initial: float, rate: float) -> None:
        self.values = torch.full((n,), initial, dtype=torch.float64)
        self._rate = rate

    def at(self, preferences: Tensor) -> Tensor:
        """Return the multiplier at each preference, float64 ``[batch]``."""
        return (self._shares(preferences) @ self.values.log()).exp()

    def update(self, preferences: Tensor, relative: Tensor) -> None:
        """Update the multipliers after a batch; those without an image in it do not change.

        ``relative`` is the cost of each image over its budget.
        """
        shares = self._shares(preferences)  # [batch, knots]
        seen = shares.sum(dim=0)
        over = (shares.T @ (relative.double() - 1.0)) / seen.clamp(min=1e-12)
        moved = self._rate * over.clamp(-_MAX_VIOLATION, _MAX_VIOLATION) * (seen > 0)
        self.values = (self.values * moved.exp()).clamp(_MIN, _MAX)

    def restore(self, values: Sequence[float]) -> None:
        """Restore the multipliers; another number of ``values`` raises CheckpointError."""
        if len(values) != len(self.values):
            raise CheckpointError(
                f"the checkpoint has {len(values)} Lagrange multipliers, but this run has "
                f"{len(self.values)}."
            )
        self.values = torch.tensor(values, dtype=torch.float64)

    def _shares(self, preferences: Tensor) -> Tensor:
        """Return interpolation weights of the knots, float64 ``[batch, knots]``; rows sum to 1."""
        last = len(self.values) - 1
        if last == 0:
            return torch.ones(len(preferences), 1, dtype=torch.float64)
        scaled = preferences.double()[:, None] * last  # [batch, 1]
        return (1.0 - (scaled - torch.arange(last + 1)).abs()).clamp(min=0.0)
