"""Decisions of a learned gate, in few operators.

``observe``, the features of a backbone and a gate compute in many small steps. In a graph each step
is a node, which at batch 1 costs more than its arithmetic. Here one vector holds the numbers that
change from image to image, and one linear map makes of it what the gate reads.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE, GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.gating.action_masks import action_masks, end_masks
from dfs_rl.gating.execution import ExecutionState
from dfs_rl.gating.networks import LearnedGate, macs_taken
from dfs_rl.gating.observation import FEATURE_LIMIT, MIN_STD, observe
from dfs_rl.gating.passes import FINISHED, MIRRORED
from dfs_rl.runtime.pass_forms import evidence_of

_SPENT_UNIT = 1024.0
"""Units of cost in all gated layers at 32 bit, which ``cost_scale`` takes the root of."""


Context = tuple[Tensor, Tensor]


class PassState(NamedTuple):
    """What a pass knows of those before it, with a row for each image.

    Attributes:
        mirrored: True for a pass on the mirror image, bool ``[n]``.
        before: Cost spent before the pass, ``[n, 1]``.
        evidence: As in ``PassHistory``, float32 ``[n, evidence_size]``.
        history: Logits of the passes, float32 ``[n, limit, classes]``; 0 for those not yet run.
        computation: Computation of the earlier passes in percent, float64 ``[n]``.
    """

    mirrored: Tensor
    before: Tensor
    evidence: Tensor
    history: Tensor
    computation: Tensor


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
        self.layer_costs = (_SPENT_UNIT * costs.action_costs()).to(self.cost_type)
        restart = _SPENT_UNIT * costs.fixed_cost(gate_macs=gate.observed_macs)
        self.restart_cost = torch.tensor(restart, dtype=self.cost_type)
        self.several = gate.passes.limit > 1
        most = float(costs.option_costs().amax(dim=1).sum())
        self.may_overspend = self.several or most > 1 + torch.finfo(torch.float32).eps
        if self._network is not None:
            for part in self._network.probes.modules():
                part.divides = True  # type: ignore[assignment]
        self.maps = [self._map(layer) for layer in range(len(gate.input_sizes))]
        self.computations = _computations(costs, gate)

    def first_state(self) -> PassState:
        """Return the state before the first pass, one row."""
        passes = self.gate.passes
        return PassState(
            mirrored=torch.zeros(1, dtype=torch.bool),
            before=torch.zeros(1, 1, dtype=self.cost_type),
            evidence=torch.zeros(1, passes.evidence_size),
            history=torch.zeros(1, passes.limit, self.backbone.n_classes),
            computation=torch.zeros(1, dtype=torch.float64),
        )

    def spend(self, context: Context | None, layer: int, action: int) -> Tensor:
        """Return the cost spent after a layer at which ``action`` is chosen, ``[n, 1]``."""
        cost = self.layer_costs[layer, action].view(1, 1)
        return cost if context is None else context[0] + cost

    def forward(
        self,
        hidden: Tensor,
        layer: int,
        context: Context | None,
        preference: Tensor,
        evidence: Tensor | None = None,
    ) -> Tensor:
        """Return the action before a layer, int64 ``[n]``.

        Args:
            hidden: Input activation of the layer.
            layer: Index of the layer.
            context: Cost spent so far and the last option in [0, 1], ``[n, 1]`` each; ``None``
                before the first layer of a single pass.
            preference: float32 ``[n]``, see ``LearnedGate``.
            evidence: Evidence of earlier passes, ``[n, size]``, if there may be several.
        """
        costs, gate = self.backbone.costs, self.gate
        bounded = self.maps[layer][2] is not None
        features = (
            self._features(hidden, layer, whole=not bounded) if gate.feature_sizes[layer] else []
        )
        inputs = self._read(features, layer, context, preference, evidence)
        allowed = None
        if self.budget is not None:
            spent = torch.zeros(1, 1, dtype=self.cost_type) if context is None else context[0]
            fraction = spent[:, 0] / _SPENT_UNIT
            allowed = action_masks(costs, layer, fraction, self.budget, gate_macs=gate.macs)
            # Actions at the end of a pass alone are the cheapest option at a layer.
            missing = max(gate.n_actions - allowed.shape[1], 0)
            allowed = torch.cat([allowed, allowed[:, :1].expand(-1, missing)], dim=1)
            allowed = allowed[:, : gate.n_actions]
        choice = gate.decide(*inputs, allowed)
        if gate.n_actions > costs.n_actions:
            choice = choice.masked_fill(choice >= costs.n_actions, 0)
        if costs.exits and layer not in costs.exits_after:
            choice = choice.masked_fill(choice == costs.exit_action, 0)
        return choice

    def after_pass(
        self, state: PassState, logits: Tensor, options: Tensor, spent: Tensor, preference: Tensor
    ) -> tuple[Tensor, Tensor, PassState]:
        """Return the answer so far, whether to run again, bool ``[n]``, and the state then.

        Args:
            state: State before the pass.
            logits: Logits of the pass, ``[n, classes]``.
            options: Its options, int64 ``[n, layers]``.
            spent: Cost spent so far, ``[n, 1]``.
            preference: float32 ``[n]``, see ``LearnedGate``.
        """
        costs, gate = self.backbone.costs, self.gate
        passes = gate.passes
        finished = state.evidence[:, FINISHED:].sum(dim=1).long() + 1
        present = (torch.arange(passes.limit) == finished[:, None] - 1)[:, :, None]
        history = torch.where(present, logits[:, None, :], state.history)
        answer, evidence = evidence_of(history, finished, options, passes, full=costs.options.full)
        view = state.mirrored.float()[:, None]
        seen = torch.cat([evidence[:, :MIRRORED], view, evidence[:, FINISHED:]], dim=1)
        inputs = self._read([], costs.n_layers, (spent, spent), preference, seen)
        budget, fraction = self.budget, spent[:, 0] / _SPENT_UNIT
        allowed = end_masks(costs, passes, fraction, budget, gate_macs=gate.macs)
        action = gate.decide(*inputs, allowed)
        mirrored = passes.is_mirrored(action)
        columns = [evidence[:, :MIRRORED], mirrored.float()[:, None], evidence[:, FINISHED:]]
        computation = state.computation + self.computation(options)
        after = PassState(
            mirrored, spent + self.restart_cost, torch.cat(columns, dim=1), history, computation
        )
        return answer, passes.runs_again(action), after

    def _read(
        self,
        features: list[Tensor],
        layer: int,
        context: Context | None,
        preference: Tensor,
        evidence: Tensor | None,
    ) -> tuple[Tensor, int, Tensor]:
        """Return what the gate reads before a layer or, at the layer after the last, at the end."""
        costs, gate = self.backbone.costs, self.gate
        weight, bias, low, high = self.maps[layer]
        columns = [*features]
        if context is not None:
            spent, previous = context
            bounded = spent.clamp(max=_SPENT_UNIT) if self.may_overspend else spent
            columns.append((1.0 + bounded.sqrt()).log().float())
            if 0 < layer < costs.n_layers:
                columns.append(previous)
        if gate.budget_conditioning is not None:
            columns.append(preference[:, None])
        if evidence is not None:
            columns.append(evidence)
        self._whole = bias.expand(preference.shape[0], -1)
        if columns:
            vector = torch.cat(columns, dim=1)
            if low is not None:
                vector = vector.maximum(low)
            self._whole = functional.linear(vector.minimum(high), weight, bias)
        size = gate.input_sizes[layer]
        self._seen = self._whole[:, :size], self._whole[:, size:]
        return self._seen[0], layer, self._seen[1]

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
        size = gate.input_sizes[layer]
        network = self._network if size else None
        row = min(layer, backbone.costs.n_layers - 1)  # of no feature at the end of a pass
        mean = backbone.feature_mean[row, :size].double()
        std = backbone.feature_std[row, :size].double()
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
        has_spent = self.several or layer > 0
        has_previous = 0 < layer < backbone.costs.n_layers
        conditioned = gate.budget_conditioning is not None
        # In the order of the context, of which the budget is the same for all images.
        places = [0] * has_spent + [2] * has_previous + [3] * conditioned
        places += range(3 + conditioned, gate.context_size)
        weight = torch.zeros(size + gate.context_size, size + len(places)).double()
        weight[:size, :size] = slope.diag()
        for column, place in enumerate(places, start=size):
            weight[size + place, column] = 1.0 if place else 1 / math.log(33.0)
        if network is not None and not bounded:
            weight[1, 1] *= -1
            weight[1, 0] = -weight[1, 1]
            low[:CONFIDENCE_SIZE], high[:CONFIDENCE_SIZE] = -math.inf, math.inf
        bias = torch.zeros(size + gate.context_size).double()
        bias[:size] = -slope * mean
        bias[size + 1] = self._context()[1]
        limit = torch.full((len(places),), math.inf)
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
