"""Interface of gates, and gates without learned parameters."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError


@runtime_checkable
class Gate(Protocol):
    """Interface of a gate for evaluation, comparison and deployment.

    Attributes:
        name: Name in tables and plots.
    """

    name: str

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all decisions per image at full precision, over all layers.

        They include the computation of the backbone that only the gate needs.
        """
        ...

    def reset(self, batch_size: int) -> None:
        """Start a rollout of ``batch_size`` images."""
        ...

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Choose an option for every image, int64 ``[batch]``; ``CostTable.exit_action`` exits.

        Args:
            features: float32 ``[batch, width]``, see ``Observation``.
            layer: Index of the layer to choose for.
            context: float32 ``[batch, 3 or 4]``, see ``Observation``.
        """
        ...


class TableGate:
    """Static bit table: the same option per layer for all images.

    Args:
        table: Option index for each layer; the index after the last option takes an exit, see
            ``CostTable``.
        options: Bit options that the indices refer to, required for a table that is stored;
            ``None`` for those of any backbone.
        exits: Numbers of gated layers after which the network has exits, required for a table that
            takes an exit and is stored.
        name: Name in tables and plots.

    Raises:
        ConfigError: If an index is out of range.
    """

    macs = 0.0
    budget: float | None = None  # the cost of a static bit table is known when it is built
    budget_conditioning = None

    def __init__(
        self,
        table: Sequence[int],
        *,
        options: BitOptions | None = None,
        exits: Sequence[int] = (),
        name: str = "table",
    ) -> None:
        self.table = tuple(int(option) for option in table)
        self.options = options
        self.exits = tuple(exits)
        self.name = name
        if options is None:
            return
        highest = options.full + bool(self.exits)
        if not all(0 <= option <= highest for option in self.table):
            exit_action = f", of which {highest} takes the exit" if self.exits else ""
            raise ConfigError(
                f"table is {list(self.table)}; allowed are indices of the bit options "
                f"{list(options)}, 0 to {highest}{exit_action}."
            )

    def reset(self, batch_size: int) -> None:
        """Do nothing: the gate has no state."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002
        """Return the layer's option for every image."""
        option = self.table[layer]
        return torch.full((len(features),), option, dtype=torch.int64, device=features.device)
