"""Costs of options, counted in one place for reward, budget, evaluation and reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from typing import Literal

import torch
from torch import Tensor

from dfs_rl.costs.bit_options import FULL, BitOptions
from dfs_rl.costs.cost_models import COMPUTATION, COST_MODELS, check_cost_model
from dfs_rl.errors import ConfigError

Counting = Literal["full", "dfs"]
"""``"full"`` counts everything, ``"dfs"`` the gated layers alone, as DFS does."""
_CPU = torch.device("cpu")


def _per_device(count: Callable[["CostTable"], Tensor]) -> Callable[..., Tensor]:
    """Give a method an argument ``device`` and cache its results, which are read-only."""

    @lru_cache(maxsize=64)
    @wraps(count)
    def cached(costs: "CostTable", device: torch.device = _CPU) -> Tensor:
        with torch.inference_mode(mode=False):  # gradients may be recorded with the result
            return count(costs).to(device)

    return cached


@dataclass(frozen=True, kw_only=True)
class FixedCost:
    """A part of the network that is never gated, with its MACs per image.

    Attributes:
        layer: The gated layer that it runs with, or the number of layers for the head: an image
            that exits earlier is spared it. ``None`` runs before all of them.
    """

    name: str
    macs: int
    bits: int
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExitCost:
    """A classifier at which an image can leave the network, after ``after`` gated layers."""

    after: int
    macs: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a backbone's gated layers and of its fixed parts, per image.

    Costs are fractions of running every gated layer at 32 bit, counted by the cost model;
    ``computation`` converts them to percent.

    The actions are the bit options and, with exits, one more, ``exit_action``. In the
    actions of an image it stands for every layer after its exit. At a layer without an exit it
    means the cheapest option, which is nearest to spending nothing and within every budget.

    Attributes:
        layer_macs: MACs of each gated layer.
        fixed: The parts that are never gated: stem, shortcuts with weights, head.
        exits: The exits, in order.
        cost_model: Registered name of the cost model.

    Raises:
        ConfigError: If a value is invalid.
    """

    options: BitOptions
    layer_macs: tuple[int, ...]
    fixed: tuple[FixedCost, ...] = ()
    exits: tuple[ExitCost, ...] = ()
    cost_model: str = COMPUTATION

    def __post_init__(self) -> None:
        if not self.layer_macs or min(self.layer_macs) <= 0:
            raise ConfigError(
                f"layer_macs is {self.layer_macs}; every gated layer needs a positive count."
            )
        check_exits(self.exits_after, self.n_layers)
        check_cost_model(self.cost_model)

    @property
    def total_macs(self) -> int:
        """MACs of all gated layers together."""
        return sum(self.layer_macs)

    @cached_property
    def total_cost(self) -> float:
        """Cost of all gated layers at 32 bit: the denominator of every fraction."""
        return sum(self.cost(macs, FULL, layer) for layer, macs in enumerate(self.layer_macs))

    def cost(self, macs: float, bits: int, layer: int | None = None) -> float:
        """Return a part's cost in MACs at 32 bit; ``layer`` is the index of a gated layer."""
        model = COST_MODELS[self.cost_model]
        return model(macs, bits, layer) / model(1.0, FULL, None)

    def percent(self, macs: float, bits: int = FULL) -> float:
        """Return the cost of a part that is never gated, in percent of all gated layers."""
        return self.cost(100.0 * macs, bits) / self.total_cost

    @property
    def n_layers(self) -> int:
        """Number of gated layers."""
        return len(self.layer_macs)

    @property
    def exits_after(self) -> tuple[int, ...]:
        """Numbers of gated layers before the exits, in order."""
        return tuple(exit_.after for exit_ in self.exits)

    @property
    def exit_action(self) -> int:
        """The action that exits: the index after the last bit option."""
        return len(self.options)

    @property
    def n_actions(self) -> int:
        """Number of actions: the options and, with exits, one more."""
        return len(self.options) + bool(self.exits)

    @_per_device
    def option_costs(self) -> Tensor:
        """Return the cost of each option at each layer, float64 ``[layers, options]``."""
        full = [self.cost(macs, FULL, layer) for layer, macs in enumerate(self.layer_macs)]
        relative = [
            [self.cost(macs, bits, layer) / full[layer] for bits in self.options]
            for layer, macs in enumerate(self.layer_macs)
        ]
        share = torch.tensor(full, dtype=torch.float64, device="cpu") / self.total_cost
        return share[:, None] * torch.tensor(relative, dtype=torch.float64, device="cpu")

    @_per_device
    def action_costs(self) -> Tensor:
        """Return the cost of each action at each layer, float64 ``[layers, actions]``.

        The exit action costs its classifier less the fixed parts that it spares, which can be
        negative. At a layer without an exit it costs the cheapest option.
        """
        costs = self.option_costs()
        if not self.exits:
            return costs
        leaving = costs[:, 0].clone()
        for exit_ in self.exits:
            spared = sum(
                self.cost(part.macs, part.bits)
                for part in self.fixed
                if part.layer is not None and part.layer >= exit_.after
            )
            leaving[exit_.after] = (self.cost(exit_.macs, exit_.bits) - spared) / self.total_cost
        return torch.cat([costs, leaving[:, None]], dim=1)

    @_per_device
    def least_costs(self) -> Tensor:
        """Return the least cost of an answer from each layer on, float64 ``[layers + 1]``."""
        costs = self.action_costs()
        least = torch.zeros(self.n_layers + 1, dtype=torch.float64, device="cpu")
        for layer in reversed(range(self.n_layers)):
            least[layer] = costs[layer, : len(self.options)].min() + least[layer + 1]
            if layer in self.exits_after:
                least[layer] = torch.minimum(least[layer], costs[layer, self.exit_action])
        return least

    def n_layers_run(self, options: Tensor) -> Tensor:
        """Return the number of gated layers before each image's exit, int64 ``[batch]``."""
        return (options != self.exit_action).sum(dim=-1)

    def canonicalize(self, options: Tensor) -> Tensor:
        """Return actions ``[..., layers]`` in their canonical form, int64.

        The cheapest option stands in place of an exit that does not exist, and the exit action at
        all layers after an exit.
        """
        chosen = options.long()
        leaving = chosen == self.exit_action
        has_exit = [layer in self.exits_after for layer in range(self.n_layers)]
        there = leaving & torch.tensor(has_exit, device=options.device)
        chosen = chosen.masked_fill(leaving & ~there, 0)
        return chosen.masked_fill(there.cumsum(dim=-1) > 0, self.exit_action)

    def fixed_cost(self, *, gate_macs: float = 0.0) -> float:
        """Return the cost of the never-gated parts and of the gate, as a fraction."""
        return (self._fixed_macs + self.cost(gate_macs, FULL)) / self.total_cost

    @cached_property
    def _fixed_macs(self) -> float:
        """Cost of the never-gated parts in MACs at 32 bit."""
        return sum(self.cost(part.macs, part.bits) for part in self.fixed)

    def fractions(self, options: Tensor, *, counting: Counting = "full") -> Tensor:
        """Return the cost of the gated layers and exits as a fraction, float64 ``[batch]``.

        ``options`` are the actions of each image, integer ``[batch, layers]``.
        """
        costs, chosen = self.option_costs(options.device), options.long()
        layers = torch.arange(self.n_layers, device=options.device)
        if not self.exits:
            return costs[layers, chosen].sum(dim=-1)  # [batch, layers] -> [batch]
        nothing = costs.new_zeros(self.n_layers, 1)
        spent = torch.cat([costs, nothing], dim=1)[layers, chosen].sum(dim=-1)
        if counting == "dfs":
            return spent
        exits = self.action_costs(options.device)[:, self.exit_action]
        leaving = torch.cat([exits, spent.new_zeros(1)])
        return spent + leaving[self.n_layers_run(options)]

    def computation(
        self, options: Tensor, *, gate_macs: float | Tensor = 0.0, counting: Counting = "full"
    ) -> Tensor:
        """Return each image's percent of running every gated layer at 32 bit, float64 ``[batch]``.

        Args:
            options: Actions of each image, integer ``[batch, layers]``.
            gate_macs: MACs of the gate per image, at full precision; a number, or ``[batch]``.
            counting: ``"full"`` includes the never-gated parts, exits and the gate.
        """
        extra = (self._fixed_macs + gate_macs) / self.total_cost if counting == "full" else 0.0
        return 100.0 * (self.fractions(options, counting=counting) + extra)

    def bitops(
        self,
        options: Tensor,
        *,
        gate_macs: float | Tensor = 0.0,
        feature_macs: float | Tensor = 0.0,
    ) -> Tensor:
        """Return MACs x weight bits x activation bits of each image, gate and all, ``[batch]``.

        Args:
            options: Actions of each image, integer ``[batch, layers]``.
            gate_macs: MACs of the gate per image, at full precision; a number, or ``[batch]``.
            feature_macs: Those among ``gate_macs`` that run at the precision of the stem, counted
                by this table's cost model.
        """
        plain = replace(self, cost_model=COMPUTATION)
        bits = self.fixed[0].bits if self.fixed else FULL
        counted = self.cost(1.0, bits)
        if counted > 0:  # a cost model may charge nothing below 32 bit
            gate_macs = gate_macs + feature_macs * (plain.cost(1.0, bits) / counted - 1.0)
        fixed = (plain._fixed_macs + gate_macs) / self.total_macs
        return (plain.fractions(options) + fixed) * self.total_macs * FULL**2


def check_exits(after: Sequence[int], n_layers: int) -> None:
    """Check the numbers of gated layers before the exits.

    Raises:
        ConfigError: If they are not ascending numbers from 0 to one less than the layers.
    """
    if list(after) != sorted(set(after) & set(range(n_layers))):
        raise ConfigError(
            f"exits are asked for after {list(after)} gated layers; allowed are ascending numbers "
            f"from 0 to {n_layers - 1}."
        )
