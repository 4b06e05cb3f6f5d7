"""Gates: anything that chooses an option per layer and image, and those that need no learning."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from dfs_rl.utils.seeding import torch_generator


@runtime_checkable
class Gate(Protocol):
    """What evaluation, comparison and deployment know of a gate."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        ...

    @property
    def macs(self) -> float:
        """Multiply-accumulates that its decisions take per image, over all layers, at full precision.

        What the backbone computes for its sake alone is part of them.
        """
        ...

    def reset(self, batch_size: int) -> None:
        """Begin a walk of ``batch_size`` images."""
        ...

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Choose an option for every image.

        Args:
            features: Normalised, float32 ``[batch, width]``, see ``Observation``.
            layer: The layer to choose for.
            context: What was spent, budget, previous option, position of the dial if there is one:
                float32 ``[batch, 3 or 4]``.

        Returns:
            Option indices, int64 ``[batch]``; ``CostTable.exit_action`` leaves.
        """
        ...


class TableGate:
    """The same options for every image: a static mixed-precision network.

    Args:
        table: Option index for each layer; one more than the menu's last leaves the network, see
            ``CostTable``.
        options: The menu that the indices belong to, which a table that is stored must know;
            ``None`` for that of whatever network it steers.
        exits: After how many layers the network has exits, which a table that leaves by one and is
            stored must know.
        name: What tables and plots call it.

    Raises:
        ConfigError: If an index is not on the menu.
    """

    macs = 0.0
    budget: float | None = None
    """What it costs was known when it was made, so nothing is left to enforce."""
    budget_conditioning = None
    """There is nothing to turn."""

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
        most = 0 if options is None else options.full + bool(self.exits)
        if options is not None and not all(0 <= option <= most for option in self.table):
            leaving = f", of which {most} leaves" if self.exits else ""
            raise ConfigError(
                f"table {list(self.table)} holds an option that is not on the menu "
                f"{list(options)}; allowed are 0 to {most}{leaving}."
            )

    def reset(self, batch_size: int) -> None:
        """Keep nothing from walk to walk."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002 - it looks at the layer alone
        """Return the layer's option for every image."""
        return torch.full(
            (len(features),), self.table[layer], dtype=torch.int64, device=features.device
        )


class RandomGate:
    """Options drawn at random, independently for every layer and image.

    The draws are one stream from the construction on; a second gate with the same seed repeats
    them.

    Args:
        marginals: Probability of each action at each layer, ``[layers, actions]``; rows sum to 1.
        seed: Seed of the stream.
        name: What tables and plots call it.

    Raises:
        ConfigError: If a row of ``marginals`` is no distribution.
    """

    macs = 0.0

    def __init__(self, marginals: Tensor, *, seed: int, name: str = "random") -> None:
        self.marginals = marginals.detach().to("cpu", torch.float64)
        sums = self.marginals.sum(dim=-1)
        if (
            self.marginals.dim() != 2  # noqa: PLR2004 - [layers, options]
            or bool((self.marginals < 0).any())
            or not torch.allclose(sums, torch.ones_like(sums))
        ):
            raise ConfigError(
                "marginals must be [layers, options], not negative, and each row must sum to 1."
            )
        self.name = name
        self._generator = torch_generator(seed, "random gate")

    def reset(self, batch_size: int) -> None:
        """Keep nothing from walk to walk but the place in the stream."""

    def decide(self, features: Tensor, layer: int, context: Tensor) -> Tensor:  # noqa: ARG002 - it looks at the layer alone
        """Draw an option for every image."""
        draws = torch.multinomial(
            self.marginals[layer], len(features), replacement=True, generator=self._generator
        )
        return draws.to(features.device)
