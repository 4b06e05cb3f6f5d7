"""Costs of options, counted in one place for reward, budget, evaluation and reports."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, wraps
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from dfs_rl.costs.bit_options import FULL, BitOptions
from dfs_rl.costs.cost_models import (
    COMPUTATION,
    COST_MODELS,
    LATENCY,
    BudgetUnit,
    ExitCost,
    FixedCost,
    check_cost_model,
    check_exits,
)
from dfs_rl.costs.latency_profile import LatencyProfile, difference
from dfs_rl.errors import ConfigError

Counting = Literal["full", "dfs"]
"""``"full"`` counts everything, ``"dfs"`` the gated layers alone, as DFS does."""
NumberT = TypeVar("NumberT", float, Tensor, float | Tensor)
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
class CostTable:
    """Costs of a backbone's gated layers and of its fixed parts, per image.

    Costs are fractions of running every gated layer at 32 bit, counted by the cost model;
    ``computation`` converts them to percent. With the cost model ``latency`` they are fractions of
    the measured time at the largest bit option.

    The actions are the bit options and, with exits, one more, ``exit_action``. In the
    actions of an image it stands for every layer after its exit. At a layer without an exit it
    means the cheapest option, which is nearest to spending nothing and within every budget.

    Attributes:
        fixed: The parts that are never gated: stem, shortcuts with weights, head.
        profile: Measured times for the cost model ``latency``; its smallest batch size counts.

    Raises:
        ConfigError: If a value is invalid.
    """

    options: BitOptions
    layer_macs: tuple[int, ...]
    fixed: tuple[FixedCost, ...] = ()
    exits: tuple[ExitCost, ...] = ()
    cost_model: str = COMPUTATION
    profile: LatencyProfile | None = field(default=None, hash=False, repr=False)

    def __post_init__(self) -> None:
        if not self.layer_macs or min(self.layer_macs) <= 0:
            raise ConfigError(
                f"layer_macs is {self.layer_macs}; every gated layer needs a positive count."
            )
        check_exits(self.exits_after, self.n_layers)
        check_cost_model(self.cost_model)
        self._check_profile()

    def _check_profile(self) -> None:
        """Check that a profile measures this network, at all options and exits."""
        profile = self.profile
        if (profile is None) == (self.cost_model == LATENCY):
            raise ConfigError(
                f"cost is {self.cost_model} {'with' if profile else 'without'} a latency profile; "
                "latency takes one, and the other cost models take none."
            )
        if profile is None:
            return
        network = {
            "layer_macs": self.layer_macs,
            "fixed_macs": tuple(part.macs for part in self.fixed),
            "fixed_bits": tuple(part.bits for part in self.fixed),
        }
        for name, own in network.items():
            if (theirs := getattr(profile, name)) != own:
                raise ConfigError(
                    f"the latency profile measures another network: {difference(name, theirs, own)}"
                    "; measure this one with python -m dfs_rl.profile."
                )
        for layer in self._layers:
            for bits in self.options:
                self.layer_cost(layer, bits)
        parts: tuple[FixedCost | ExitCost, ...] = (*self.fixed, *self.exits)
        for part in parts:
            self.part_cost(part)
        full = self._full_bits
        divisors = {f"layer {i} at {full} bit": self.layer_cost(i, full) for i in self._layers}
        for name, cost in {**divisors, "the gate": self.gate_cost(1.0)}.items():
            if cost <= 0:
                raise ConfigError(
                    f"the latency profile has 0 ms for {name}, which is too little to measure; "
                    "take more calls or a larger network."
                )

    @property
    def total_macs(self) -> int:
        """MACs of all gated layers together."""
        return sum(self.layer_macs)

    @cached_property
    def total_cost(self) -> float:
        """Cost of all gated layers in full precision: 100 % of every cost and budget."""
        return sum(self.layer_cost(layer, self._full_bits) for layer in self._layers)

    @property
    def _full_bits(self) -> int:
        """Full precision: 32 bit by formula, the largest bit option where times are measured."""
        return FULL if self.profile is None else self.options[self.options.full]

    def layer_cost(self, layer: int, bits: int) -> float:
        """Return the cost of a gated layer in MACs at 32 bit, or in milliseconds."""
        if self.profile is not None:
            return self.profile.milliseconds("layer", layer, bits)
        return self.cost(self.layer_macs[layer], bits, layer)

    def part_cost(self, part: FixedCost | ExitCost) -> float:
        """Return the cost of a never-gated part or an exit in MACs at 32 bit, or in milliseconds.

        The measured time of a gated layer includes its mandatory part.
        """
        if self.profile is None:
            return self.cost(part.macs, part.bits)
        if isinstance(part, ExitCost):
            return self.profile.milliseconds("exit", part.after)
        if part.layer is None:
            return self.profile.milliseconds("stem")
        return self.profile.milliseconds("head") if part.layer == self.n_layers else 0.0

    def gate_cost(self, macs: NumberT) -> NumberT:
        """Return the cost of a gate in MACs at 32 bit, or in milliseconds.

        A profile measures one gate; the time of others is taken to be in proportion to their MACs.
        """
        if self.profile is None:
            return macs
        return macs * (sum(self._gate_times) / self.profile.gate_macs)

    @cached_property
    def _gate_times(self) -> tuple[float, ...]:
        """Measured time of each decision, in milliseconds."""
        assert self.profile is not None, "decisions have measured times"
        return tuple(self.profile.milliseconds("gate", layer) for layer in self._layers)

    def decided_macs(self, gate_macs: float, n_layers_run: Tensor) -> Tensor:
        """Return the share of a gate's MACs that images are charged, by the time of each decision.

        ``n_layers_run`` is int64 ``[batch]``; images that exit decide at one more layer. The costs
        are measured.
        """
        share = torch.tensor([0.0, *self._gate_times], dtype=torch.float64).cumsum(0)
        decisions = (n_layers_run.cpu() + 1).clamp(max=self.n_layers)
        return (gate_macs * (share / share[-1])[decisions]).to(n_layers_run.device)

    def exit_macs(self, exit_: ExitCost) -> float:
        """Return the cost of an exit in MACs of a gate, see ``gate_cost``."""
        return self.part_cost(exit_) / self.gate_cost(1.0)

    def feature_macs(self, macs: float, bits: int) -> float:
        """Return the cost of the features that only a gate needs, in MACs of a gate."""
        if self.profile is None:
            return self.cost(macs, bits)
        # What a profile measures of a gate includes them.
        return self.with_cost_model(COMPUTATION).cost(macs, bits)

    def with_cost_model(self, name: str, profile: LatencyProfile | None = None) -> "CostTable":
        """Return the table with another cost model."""
        return replace(self, cost_model=name, profile=profile)

    def cost(self, macs: float, bits: int, layer: int | None = None) -> float:
        """Return a cost by formula in MACs at 32 bit; ``layer`` is the index of a gated layer."""
        model = COST_MODELS[self.cost_model]
        return model(macs, bits, layer) / model(1.0, FULL, None)

    def percent(self, cost: float) -> float:
        """Return a cost in percent of all gated layers at 32 bit."""
        return 100.0 * cost / self.total_cost

    def percent_of_budget(self, budget: float, unit: BudgetUnit) -> float:
        """Return a budget in percent of ``total_cost``; it includes stem, head and gate on top.

        Raises:
            ConfigError: If the unit is unknown, or milliseconds without measured times.
        """
        if unit not in (units := get_args(BudgetUnit)):
            raise ConfigError(f"unit of the budget is {unit!r}; allowed are {', '.join(units)}.")
        if unit == "percent":
            return budget
        if self.profile is None:
            raise ConfigError(
                f"budget is {budget:g} ms, but the cost is {self.cost_model}, which is not "
                "measured; give percent, or train with the cost latency."
            )
        return self.percent(budget)

    def cost_text(self, percent: float, digits: int = 6) -> str:
        """Return a cost or budget in words: in percent, after milliseconds if times are known."""
        text = f"{percent:.{digits}g} %"
        if self.profile is None:
            return text
        return f"{percent * self.total_cost / 100.0:.{digits}g} ms ({text})"

    @property
    def n_layers(self) -> int:
        """Number of gated layers."""
        return len(self.layer_macs)

    @property
    def _layers(self) -> range:
        return range(self.n_layers)

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
        full = [self.layer_cost(layer, self._full_bits) for layer in self._layers]
        relative = [
            [self.layer_cost(layer, bits) / full[layer] for bits in self.options]
            for layer in self._layers
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
                self.part_cost(part)
                for part in self.fixed
                if part.layer is not None and part.layer >= exit_.after
            )
            leaving[exit_.after] = (self.part_cost(exit_) - spared) / self.total_cost
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

    def lower_option(self, layer: int, option: int) -> int | None:
        """Return the next lower bit option that costs less at a layer; ``None`` if there is none.

        Measured options of fewer bits can cost as much as those of more bits.
        """
        return self._lower_options[layer][option]

    @cached_property
    def _lower_options(self) -> list[list[int | None]]:
        return [
            [
                max((i for i in range(o) if costs[i] < costs[o]), default=None)
                for o in range(len(costs))
            ]
            for costs in self.option_costs().tolist()
        ]

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
        return (self._fixed_cost + self.gate_cost(gate_macs)) / self.total_cost

    @cached_property
    def _fixed_cost(self) -> float:
        """Cost of the never-gated parts in MACs at 32 bit, or in milliseconds."""
        return sum(self.part_cost(part) for part in self.fixed)

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
        extra: float | Tensor = 0.0
        if counting == "full":
            extra = (self._fixed_cost + self.gate_cost(gate_macs)) / self.total_cost
        return 100.0 * (self.fractions(options, counting=counting) + extra)

    def bitops(self, options: Tensor, *, gate_macs: float | Tensor = 0.0) -> Tensor:
        """Return MACs x weight bits x activation bits of each image, gate and all, ``[batch]``.

        ``gate_macs`` are counted by the cost model ``computation``; a number, or ``[batch]``.
        """
        plain = self.with_cost_model(COMPUTATION)
        fixed = (plain._fixed_cost + gate_macs) / self.total_macs
        return (plain.fractions(options) + fixed) * self.total_macs * FULL**2

    def excess_macs(self, feature_macs: Tensor) -> Tensor:
        """Return by how much ``feature_macs`` are above those of the model ``computation``."""
        bits = self.fixed[0].bits if self.fixed else FULL
        counted = self.feature_macs(1.0, bits)
        if counted == 0:  # a cost model may charge nothing below 32 bit
            return torch.zeros_like(feature_macs)
        plain = self.with_cost_model(COMPUTATION).feature_macs(1.0, bits)
        return feature_macs * (1.0 - plain / counted)
