"""What a choice of options costs, counted once for every consumer: reward, budget, evaluation and reports."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfs_rl.cost.options import FULL, BitOptions, relative_cost
from dfs_rl.errors import ConfigError

Counting = Literal["full", "dfs"]


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """A part of the network that no gate decides about.

    Attributes:
        name: What it is, for example ``"stem"``.
        macs: Multiply-accumulates per image.
        bits: The precision it always runs at.
    """

    name: str
    macs: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a backbone's gated layers and of its fixed parts, per image.

    All costs are fractions of running every gated layer at 32 bit, in MACs x (bits / 32)**2; ``computation`` turns them into percent.

    Attributes:
        options: The menu every gated layer offers.
        layer_macs: MACs of each gated layer.
        fixed: The parts that always run: stem, shortcuts with weights, head.
    """

    options: BitOptions
    layer_macs: tuple[int, ...]
    fixed: tuple[FixedCost, ...] = ()

    def __post_init__(self) -> None:
        if not self.layer_macs or min(self.layer_macs) <= 0:
            raise ConfigError(
                f"layer_macs is {self.layer_macs}; every gated layer needs a positive count."
            )

    @property
    def total_macs(self) -> int:
        """MACs of all gated layers together: the denominator of every fraction."""
        return sum(self.layer_macs)

    @property
    def n_layers(self) -> int:
        """Number of gated layers."""
        return len(self.layer_macs)

    def option_costs(self) -> Tensor:
        """Cost of each option at each layer, as a fraction: float64 ``[layers, options]``."""
        share = torch.tensor(self.layer_macs, dtype=torch.float64) / self.total_macs
        price = torch.tensor([relative_cost(bits) for bits in self.options], dtype=torch.float64)
        return share[:, None] * price[None, :]  # [layers, options]

    def fixed_cost(self, *, gate_macs: float = 0.0, gate_bits: int = FULL) -> float:
        """Cost of the never-gated parts and of the gate itself, as a fraction."""
        macs = sum(part.macs * relative_cost(part.bits) for part in self.fixed)
        return (macs + gate_macs * relative_cost(gate_bits)) / self.total_macs

    def fractions(self, options: Tensor) -> Tensor:
        """Cost of the gated layers for each image, as a fraction.

        Args:
            options: Option indices, integer ``[batch, layers]``.

        Returns:
            float64 ``[batch]``.
        """
        costs = self.option_costs().to(options.device)
        layers = torch.arange(self.n_layers, device=options.device)
        return costs[layers, options.long()].sum(dim=-1)  # [batch, layers] -> [batch]

    def computation(
        self, options: Tensor, *, gate_macs: float = 0.0, counting: Counting = "full"
    ) -> Tensor:
        """Computation of each image in percent.

        Args:
            options: Option indices, integer ``[batch, layers]``.
            gate_macs: MACs per image of the gate that chose them, at full precision.
            counting: ``"full"`` includes the never-gated parts and the gate; ``"dfs"`` counts the gated layers alone, as DFS does.

        Returns:
            float64 ``[batch]``, percent of running every gated layer at 32 bit.
        """
        extra = self.fixed_cost(gate_macs=gate_macs) if counting == "full" else 0.0
        return 100.0 * (self.fractions(options) + extra)

    def bitops(self, options: Tensor, *, gate_macs: float = 0.0) -> Tensor:
        """BitOPs of each image: MACs x weight bits x activation bits, fixed parts and gate included; float64 ``[batch]``."""
        return (
            (self.fractions(options) + self.fixed_cost(gate_macs=gate_macs))
            * self.total_macs
            * FULL**2
        )
