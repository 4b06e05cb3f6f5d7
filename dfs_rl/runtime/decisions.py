"""Decisions of a learned gate, in few operators.

``observe``, the features of a backbone and a gate compute in many small steps. In a graph each step
is a node, which at batch 1 costs more than its arithmetic. Here one vector holds the numbers that
change from image to image, and one linear map makes of it what the gate reads.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.gating.action_masks import action_masks
from dfs_rl.gating.execution import ExecutionState
from dfs_rl.gating.networks import LearnedGate, macs_taken
from dfs_rl.gating.observation import FEATURE_LIMIT, MIN_STD, observe

_SPENT_UNIT = 1024.0
"""Units of cost in all gated layers at 32 bit, which ``cost_scale`` takes the root of."""


Context = tuple[Tensor, Tensor]


class Decisions(nn.Module):
    """Decisions of a gate, equal to those of ``rollout`` up to rounding.

    Args:
        backbone: A backbone in inference form.
        gate: The gate.
        budget: Upper bound on each image's computation in percent, or ``None``.
    """

    def __init__(self, backbone: GatedBackbone, gate: LearnedGate, budget: float | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.gate = copy.deepcopy(gate)
        self.gate._inputs = self._inputs  # type: ignore[method-assign]
        self.budget = budget
        costs = backbone.costs
        # Budgets compare sums of costs, which must round as everywhere else.
        self.cost_type = torch.float32 if budget is None else torch.float64
        self.layer_costs = (_SPENT_UNIT * costs.option_costs()).to(self.cost_type)
        most = float(costs.option_costs().amax(dim=1).sum())
        self.may_overspend = most > 1 + torch.finfo(torch.float32).eps
        if self._network is not None:
            for part in self._network.probes.modules():
                part.divides = True  # type: ignore[assignment]
        self.maps = [self._map(layer) for layer in range(costs.n_layers)]
        self.computations = _computations(costs, gate)

    def spend(self, context: Context | None, layer: int, option: int) -> Tensor:
        """Return the cost spent after a layer that runs at ``option``, ``[n, 1]``."""
        cost = self.layer_costs[layer, option].view(1, 1)
        return cost if context is None else context[0] + cost

    def forward(
        self, hidden: Tensor, layer: int, context: Context | None, preference: Tensor
    ) -> Tensor:
        """Return the action before a layer, int64 ``[n]``.

        Args:
            hidden: Input activation of the layer.
            layer: Index of the layer.
            context: Cost spent so far and the last option in [0, 1], ``[n, 1]`` each; ``None``
                before the first layer.
            preference: float32 ``[n]``, see ``LearnedGate``.
        """
        costs, gate = self.backbone.costs, self.gate
        size = gate.feature_sizes[layer]
        weight, bias, low, high = self.maps[layer]
        columns = self._features(hidden, layer, whole=low is None) if size else []
        spent = torch.zeros(1, 1, dtype=self.cost_type)
        if context is not None:
            spent, previous = context
            bounded = spent.clamp(max=_SPENT_UNIT) if self.may_overspend else spent
            columns += [(1.0 + bounded.sqrt()).log().float(), previous]
        if gate.budget_conditioning is not None:
            columns.append(preference[:, None])
        self._whole = bias.expand(hidden.shape[0], -1)
        if columns:
            vector = torch.cat(columns, dim=1)
            if low is not None:
                vector = vector.maximum(low)
            self._whole = functional.linear(vector.minimum(high), weight, bias)
        self._seen = self._whole[:, :size], self._whole[:, size:]
        allowed = None
        if self.budget is not None:
            fraction = spent[:, 0] / _SPENT_UNIT
            allowed = action_masks(costs, layer, fraction, self.budget, gate_macs=gate.macs)
            allowed = allowed[:, : gate.n_actions]
        choice = gate.decide(self._seen[0], layer, self._seen[1], allowed)
        if costs.exits and layer not in costs.exits_after:
            choice = choice.masked_fill(choice == costs.exit_action, 0)
        return choice

    def computation(self, options: Tensor) -> Tensor:
        """Return the computation of actions ``[n, layers]`` in percent, float64 ``[n]``."""
        layers, actions = self.computations.shape
        places = options + actions * torch.arange(layers)
        return self.computations.flatten().index_select(0, places.flatten()).view(-1, layers).sum(1)

    def _inputs(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return the network input of a layer, which lies in one piece in memory."""
        if features is self._seen[0] and context is self._seen[1]:
            return self._whole
        return LearnedGate._inputs(self.gate, features, layer, context)

    @property
    def _network(self) -> Backbone | None:
        """The network, if its features are a probe's confidence and the channels' means."""
        if not isinstance(self.backbone, InferenceBackbone):
            return None
        network = self.backbone.network
        return network if type(network).feature is Backbone.feature else None

    def _features(self, hidden: Tensor, layer: int, *, whole: bool) -> list[Tensor]:
        """Return features before a layer; ``whole`` returns two probabilities, not their lead."""
        network, size = self._network, self.gate.feature_sizes[layer]
        if network is None:
            return [self.backbone.feature(hidden, layer)[:, :size]]
        parts = network.parts(hidden)
        if network.exit_heads is not None and layer in network.exit_heads:
            logits = network.answer(hidden, layer)
        else:
            logits = network.probes[layer](parts.flatten(1))
        logs = logits.log_softmax(dim=1)
        shares = logs.exp()
        top = shares.topk(2, dim=1).values
        if not whole:
            top = top @ torch.tensor([[1.0, 1.0], [0.0, -1.0]])
        confidence = [top, (shares * logs).sum(dim=1, keepdim=True)]
        return confidence if size == CONFIDENCE_SIZE else [*confidence, parts.mean(dim=2)]

    def _map(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return weight and bias of the map to the gate's input, and the bounds of its columns.

        Without lower bounds none could be reached, nor any bound of the confidence.
        """
        backbone, gate = self.backbone, self.gate
        size = gate.feature_sizes[layer]
        network = self._network if size else None
        mean = backbone.feature_mean[layer, :size].double()
        std = backbone.feature_std[layer, :size].double()
        slope = std.clamp(min=MIN_STD).reciprocal()
        least, most = torch.full_like(mean, -math.inf), torch.full_like(mean, math.inf)
        if network is not None:
            sure = slice(CONFIDENCE_SIZE)
            heads = network.exit_heads
            if heads is not None and layer in heads:
                i = heads.after.index(layer)
                slope[sure] *= std[sure] / heads.confidence_std[i].double()
                mean[sure] = heads.confidence_mean[i].double()
            # The third column is minus the entropy.
            slope[2], mean[2] = -slope[2], -mean[2]
            least[: 2 if network._signed else size] = 0
            least[2], most[sure] = -math.log(backbone.n_classes), torch.tensor([1.0, 1.0, 0.0])
        reach = FEATURE_LIMIT / slope.abs()
        low, high = mean - reach, mean + reach
        bounded = bool((least < low).any() or (most > high)[:CONFIDENCE_SIZE].any())
        after = 2 if layer else 0
        conditioned = gate.budget_conditioning is not None
        weight = torch.zeros(size + gate.context_size, size + after + conditioned).double()
        weight[:size, :size] = slope.diag()
        if network is not None and not bounded:
            weight[1, 1] *= -1
            weight[1, 0] = -weight[1, 1]
            low[:CONFIDENCE_SIZE], high[:CONFIDENCE_SIZE] = -math.inf, math.inf
        bias = torch.zeros(size + gate.context_size).double()
        bias[:size] = -slope * mean
        bias[size + 1] = self._context()[1]
        if after:
            weight[size, size] = 1 / math.log(33.0)
            weight[size + 2, size + 1] = 1
        if conditioned:
            weight[-1, -1] = 1
        limit = torch.full((after + conditioned,), math.inf)
        low, high = (torch.cat([low, -limit]), torch.cat([high, limit]))
        return weight.float(), bias.float(), low.float() if bounded else None, high.float()

    def _context(self) -> Tensor:
        """Return the context before the first layer."""
        backbone, gate = self.backbone, self.gate
        state = ExecutionState(
            torch.zeros(1),
            0,
            torch.zeros(1, 0, dtype=torch.int64),
            torch.zeros(1, dtype=torch.float64),
        )
        return observe(
            backbone, state, budget=self.budget, gate_macs=gate.observed_macs, with_features=False
        ).context[0]


def _computations(costs: CostTable, gate: LearnedGate) -> Tensor:
    """Return the computation of each action at each layer, float64 ``[layers, actions]``.

    The exit action is counted at every layer from the exit on. Sums over the layers are what
    ``CostTable.computation`` returns.
    """
    layers = costs.n_layers

    def percent(options: Tensor) -> Tensor:
        gate_macs = macs_taken(gate, costs.n_layers_run(options), costs)
        return costs.computation(options, gate_macs=gate_macs)

    none = torch.zeros(layers, layers, dtype=torch.int64)
    base = percent(none)
    columns = [
        percent(none + option * torch.eye(layers, dtype=torch.int64)) - base
        for option in range(len(costs.options))
    ]
    if costs.exits:
        leaving = percent(none + costs.exit_action * none.add(1).triu()) - base
        columns.append(leaving - torch.cat([leaving[1:], leaving.new_zeros(1)]))
    table = torch.stack(columns, dim=1)
    table[0] += base[0]
    return table
