"""What a choice of options costs, counted once for every consumer: reward, budget, evaluation and reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfs_rl.costs.bit_options import FULL, BitOptions, relative_cost
from dfs_rl.errors import ConfigError

Counting = Literal["full", "dfs"]


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """A part of the network that no gate decides about.

    Attributes:
        name: What it is, for example ``"stem"``.
        macs: Multiply-accumulates per image.
        bits: The precision it always runs at.
        layer: The gated layer that it runs with, or the number of layers for what runs after the last one: an image that leaves before
            is spared it. ``None`` runs before all of them.
    """

    name: str
    macs: int
    bits: int
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExitCost:
    """A classifier that an image may take for its answer, and leave the network.

    Attributes:
        after: How many gated layers have run when it is reached: the index of the layer that would be next.
        macs: Multiply-accumulates per image.
        bits: The precision it runs at.
    """

    after: int
    macs: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a backbone's gated layers and of its fixed parts, per image.

    All costs are fractions of running every gated layer at 32 bit, in MACs x (bits / 32)**2; ``computation`` turns them into percent.

    This is the one place that knows the actions: the options of the menu and, where there are exits, one more, ``exit_action``. In what
    an image did, it stands for every layer that the image did not come to. Where it is chosen at a layer without an exit, the cheapest
    option is meant: whoever chooses it wants to spend no more, the cheapest option comes nearest to that and is within every budget
    that can be kept. The dearest would charge most for the wish to pay least.

    Attributes:
        options: The menu every gated layer offers.
        layer_macs: MACs of each gated layer.
        fixed: The parts that always run: stem, shortcuts with weights, head.
        exits: Where an image may leave, in order.
    """

    options: BitOptions
    layer_macs: tuple[int, ...]
    fixed: tuple[FixedCost, ...] = ()
    exits: tuple[ExitCost, ...] = ()

    def __post_init__(self) -> None:
        if not self.layer_macs or min(self.layer_macs) <= 0:
            raise ConfigError(
                f"layer_macs is {self.layer_macs}; every gated layer needs a positive count."
            )
        check_exits(self.exits_after, self.n_layers)

    @property
    def total_macs(self) -> int:
        """MACs of all gated layers together: the denominator of every fraction."""
        return sum(self.layer_macs)

    @property
    def n_layers(self) -> int:
        """Number of gated layers."""
        return len(self.layer_macs)

    @property
    def exits_after(self) -> tuple[int, ...]:
        """After how many gated layers an image may leave, in order."""
        return tuple(exit_.after for exit_ in self.exits)

    @property
    def exit_action(self) -> int:
        """The action that leaves: the index after the menu's last."""
        return len(self.options)

    @property
    def n_actions(self) -> int:
        """Number of actions: the options and, where there are exits, leaving."""
        return len(self.options) + bool(self.exits)

    def option_costs(self) -> Tensor:
        """Cost of each option at each layer, as a fraction: float64 ``[layers, options]``."""
        share = torch.tensor(self.layer_macs, dtype=torch.float64) / self.total_macs
        price = torch.tensor([relative_cost(bits) for bits in self.options], dtype=torch.float64)
        return share[:, None] * price[None, :]  # [layers, options]

    def action_costs(self) -> Tensor:
        """Cost of each action at each layer, as a fraction: float64 ``[layers, actions]``.

        Leaving costs what the exit's classifier takes less what would have run later and is counted as fixed, which can be less than
        nothing. Where there is no exit, it costs what it means there, the cheapest option.
        """
        costs = self.option_costs()
        if not self.exits:
            return costs
        leaving = costs[:, 0].clone()
        for exit_ in self.exits:
            spared = sum(
                part.macs * relative_cost(part.bits)
                for part in self.fixed
                if part.layer is not None and part.layer >= exit_.after
            )
            leaving[exit_.after] = (
                exit_.macs * relative_cost(exit_.bits) - spared
            ) / self.total_macs
        return torch.cat([costs, leaving[:, None]], dim=1)

    def has_exit(self) -> Tensor:
        """Whether an image may leave before each gated layer, bool ``[layers]``."""
        has = torch.zeros(self.n_layers, dtype=torch.bool)
        has[list(self.exits_after)] = True
        return has

    def least_costs(self) -> Tensor:
        """Cost of the cheapest way to an answer from each layer on, as a fraction: float64 ``[layers + 1]``, 0 at the end."""
        costs, has_exit = self.action_costs(), self.has_exit()
        least = torch.zeros(self.n_layers + 1, dtype=torch.float64)
        for layer in reversed(range(self.n_layers)):
            least[layer] = costs[layer, : len(self.options)].min() + least[layer + 1]
            if has_exit[layer]:
                least[layer] = torch.minimum(least[layer], costs[layer, self.exit_action])
        return least

    def walked(self, options: Tensor) -> Tensor:
        """Return how many gated layers each image came through.

        Args:
            options: What each image did, integer ``[batch, layers]``.

        Returns:
            int64 ``[batch]``; the number of layers for an image that did not leave.
        """
        return (options != self.exit_action).sum(dim=-1)

    def closed(self, options: Tensor) -> Tensor:
        """Return actions as what an image does by them.

        Args:
            options: One action per layer, integer ``[batch, layers]``.

        Returns:
            The same with the cheapest option where there is no exit to leave by, and with leaving at all layers after the one at which
            the image left; int64 ``[batch, layers]``.
        """
        chosen = options.long()
        leaving = chosen == self.exit_action
        there = leaving & self.has_exit().to(options.device)
        chosen = chosen.masked_fill(leaving & ~there, 0)
        return chosen.masked_fill(there.cumsum(dim=-1) > 0, self.exit_action)

    def fixed_cost(self, *, gate_macs: float = 0.0, gate_bits: int = FULL) -> float:
        """Cost of the never-gated parts and of the gate itself, as a fraction."""
        return (self._fixed_macs + gate_macs * relative_cost(gate_bits)) / self.total_macs

    @property
    def _fixed_macs(self) -> float:
        """MACs of the never-gated parts, as if at full precision."""
        return sum(part.macs * relative_cost(part.bits) for part in self.fixed)

    def fractions(self, options: Tensor, *, counting: Counting = "full") -> Tensor:
        """Cost of the gated layers for each image, as a fraction.

        Args:
            options: What each image did, integer ``[batch, layers]``.
            counting: ``"full"`` adds what leaving costs, see ``action_costs``; ``"dfs"`` counts the gated layers alone.

        Returns:
            float64 ``[batch]``.
        """
        costs = self.option_costs().to(options.device)
        layers = torch.arange(self.n_layers, device=options.device)
        if not self.exits:
            return costs[layers, options.long()].sum(dim=-1)  # [batch, layers] -> [batch]
        nothing = costs.new_zeros(self.n_layers, 1)
        spent = torch.cat([costs, nothing], dim=1)[layers, options.long()].sum(dim=-1)
        if counting == "dfs":
            return spent
        leaving = torch.cat(
            [self.action_costs()[:, self.exit_action].to(spent), spent.new_zeros(1)]
        )
        return spent + leaving[self.walked(options)]

    def computation(
        self, options: Tensor, *, gate_macs: float | Tensor = 0.0, counting: Counting = "full"
    ) -> Tensor:
        """Computation of each image in percent.

        Args:
            options: What each image did, integer ``[batch, layers]``.
            gate_macs: MACs per image of the gate that chose them, at full precision; one number, or float64 ``[batch]``.
            counting: ``"full"`` includes the never-gated parts, exits and the gate; ``"dfs"`` counts the gated layers alone, as DFS does.

        Returns:
            float64 ``[batch]``, percent of running every gated layer at 32 bit.
        """
        extra = (self._fixed_macs + gate_macs) / self.total_macs if counting == "full" else 0.0
        return 100.0 * (self.fractions(options, counting=counting) + extra)

    def bitops(self, options: Tensor, *, gate_macs: float | Tensor = 0.0) -> Tensor:
        """BitOPs of each image: MACs x weight bits x activation bits, fixed parts and gate included; float64 ``[batch]``."""
        return (
            (self.fractions(options) + (self._fixed_macs + gate_macs) / self.total_macs)
            * self.total_macs
            * FULL**2
        )


def check_exits(after: Sequence[int], n_layers: int) -> None:
    """Refuse places for exits that do not exist.

    Args:
        after: After how many gated layers an image may leave.
        n_layers: Number of gated layers.

    Raises:
        ConfigError: If they are not ascending numbers from 0 to one less than the layers.
    """
    if list(after) != sorted(set(after) & set(range(n_layers))):
        raise ConfigError(
            f"exits are asked for after {list(after)} gated layers; allowed are ascending numbers from 0 to {n_layers - 1}."
        )
