"""Rollouts of single images, with plain numbers in place of tensors of one row."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfs_rl.backbones.base import InferenceBackbone
from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.costs import SKIP
from dfs_rl.gating.action_masks import action_mask
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.networks import LearnedGate, OneShotGate, macs_taken
from dfs_rl.gating.numpy_forms import GATE_FORMS, NoFormError, Reader, Views, network_of
from dfs_rl.gating.observation import scaled_budget, scaled_cost
from dfs_rl.gating.passes import PassHistory
from dfs_rl.gating.rules import RuleGate

Choose = Callable[[Tensor, int, float, list[int]], int]
"""Maps an activation, its layer, the spent fraction and the actions so far to an action."""


class SingleRollout(NamedTuple):
    """Rollout of one image.

    Attributes:
        logits: float32 ``[1, classes]``.
        actions: Action at each layer, see ``Trace.options``.
        computation: Percent of running every gated layer at 32 bit, see ``Trace``.
        n_passes: Number of passes; ``actions`` are those of the last one.
    """

    logits: Tensor
    actions: list[int]
    computation: float
    n_passes: int = 1


class _LearnedForm:
    """Decisions of a built-in learned gate, equal to those of ``observe`` and ``decide``.

    Sums in another order round differently, so two logits that agree to about six digits may change
    places.
    """

    def __init__(self, backbone: GatedBackbone, gate: LearnedGate) -> None:
        if type(gate) not in GATE_FORMS or gate.passes.limit > 1:
            raise NoFormError
        self._gate, self._costs, self.views = gate, backbone.costs, Views()
        self._form = GATE_FORMS[type(gate)](gate, self.views)
        reads = 1 if isinstance(gate, OneShotGate) else len(gate.feature_sizes)
        network = network_of(backbone)
        if isinstance(backbone, InferenceBackbone):
            self.views.child(backbone, "network", kind=type(network))
        mean, std = (self.views.view(network, f"feature_{name}") for name in ("mean", "std"))
        self._readers = [
            Reader(backbone, layer, size, (mean, std), self.views)
            for layer, size in enumerate(gate.feature_sizes[:reads])
        ]

    def start(self, budget: float | None) -> Choose:
        """Return the decisions of one rollout."""
        gate, costs, readers = self._gate, self._costs, self._readers
        score, macs = self._form.start(), gate.macs
        left = 1.0 if budget is None else scaled_budget(costs, budget, gate_macs=macs)
        conditioned = [] if gate.budget_conditioning is None else [gate.preference]
        last_option = max(1, len(gate.options) - 1)
        no_inputs = np.empty(0, dtype=np.float32)

        def choose(hidden: Tensor, layer: int, spent: float, actions: list[int]) -> int:
            inputs = no_inputs
            if layer < len(readers):
                previous = actions[-1] / last_option if actions else 0.0
                inputs = readers[layer](hidden, [scaled_cost(spent), left, previous, *conditioned])
            scores = score(layer, inputs)
            if budget is None:
                return gate.choices[int(scores.argmax())]
            allowed = action_mask(costs, layer, spent, budget, gate_macs=macs)
            if gate.exits is not None and layer not in gate.exits.after:
                allowed[-1] = allowed[0]  # the exit action is the cheapest option here
            fits = [allowed[choice] for choice in gate.choices]
            if not any(fits):
                return gate.choices[0]
            return gate.choices[int(np.where(fits, scores, -np.inf).argmax())]

        return choose


class SingleImageForm:
    """Rollouts of a gate on one image each, with the results of ``rollout``.

    Where ``fits`` no longer holds, a new form is needed.

    Args:
        backbone: The network.
        gate: The gate.
        budget: As in ``rollout``.

    Attributes:
        usable: Whether the gate has a form; otherwise ``run`` must not be called.
    """

    def __init__(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> None:
        self._backbone, self._gate, self._budget = backbone, gate, budget
        self._made_for = backbone, gate, backbone.costs, budget
        self._costs: list[list[float]] = backbone.costs.action_costs().tolist()
        self._bits = (*backbone.options, SKIP)
        self._gate_macs: dict[int, float] = {}
        self._learned: _LearnedForm | None = None
        self.usable = type(gate) in {TableGate, RuleGate} and budget is None
        if isinstance(gate, LearnedGate):
            with suppress(NoFormError):
                self._learned = _LearnedForm(backbone, gate)
                self.usable = True

    def fits(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> bool:
        """Return whether this is the form of these, with the weights that they have now."""
        made_for = backbone, gate, backbone.costs, budget
        same = all(a is b for a, b in zip(self._made_for, made_for, strict=True))
        return same and (self._learned is None or self._learned.views.are_current())

    def run(self, image: Tensor) -> SingleRollout:
        """Run one image, ``[1, c, h, w]``."""
        if not isinstance(self._backbone, InferenceBackbone):
            with torch.no_grad():
                return self._run(image)
        with torch.inference_mode():
            result = self._run(image)
        with torch.no_grad():  # a copy takes part in gradients, as other results do
            return result._replace(logits=result.logits.clone())

    def bits(self, actions: list[int]) -> list[int]:
        """Return the bit widths that ran; 0 for layers after an exit."""
        return [self._bits[action] for action in actions]

    def n_layers_run(self, actions: list[int]) -> int:
        """Return the number of gated layers before the exit."""
        return len(actions) - actions.count(self._backbone.costs.exit_action)

    def _run(self, image: Tensor) -> SingleRollout:
        gate = self._gate
        if isinstance(gate, TableGate):
            return self._run_pass(image, _table(gate.table))
        if self._learned is not None:
            return self._run_pass(image, self._learned.start(self._budget))
        assert isinstance(gate, RuleGate), "usable forms are those of the known gates"
        return self._run_rule(image, gate)

    def _run_rule(self, image: Tensor, gate: RuleGate) -> SingleRollout:
        """Run the passes of a rule until an answer is confident enough."""
        rule, costs, computation = gate.rule, self._backbone.costs, 0.0
        settings, row = gate.passes, torch.zeros(1, dtype=torch.int64)
        history = PassHistory(settings, costs, 1, self._backbone.n_classes, device=row.device)
        for i, each in enumerate(rule.passes):
            view = image.flip(-1) if each.mirrored else image
            result = self._run_pass(view, _table(each.options))
            computation += result.computation
            history.record(row, result.logits)
            if i == len(rule.thresholds):
                break
            if not history.confidence(row) < np.float32(rule.thresholds[i]):
                break
        logits = history.answer(row)
        return result._replace(logits=logits, computation=computation, n_passes=i + 1)

    def _run_pass(self, image: Tensor, choose: Choose) -> SingleRollout:
        """Run one image from the stem to its answer."""
        backbone, costs = self._backbone, self._backbone.costs
        exits_after, exit_action = costs.exits_after, costs.exit_action
        bits, layer_costs = self._bits, self._costs
        actions: list[int] = []
        hidden, spent = backbone.stem(image), 0.0
        for layer, gated in enumerate(backbone.layers):
            action = choose(hidden, layer, spent, actions)
            if action == exit_action and costs.exits:
                if layer in exits_after:
                    break
                action = 0  # the cheapest option, see ``CostTable``
            actions.append(action)
            spent += layer_costs[layer][action]
            hidden = gated(hidden, bits[action])
        layer = len(actions)
        if layer < costs.n_layers:
            assert isinstance(backbone, WithExits), "a backbone with exits in its costs has heads"
            logits = backbone.answer(hidden, layer)
            spent += self._costs[layer][exit_action]
        else:
            logits = backbone.head(hidden)
        fixed = costs.fixed_cost(gate_macs=self._macs_taken(layer))
        actions += [exit_action] * (costs.n_layers - layer)
        return SingleRollout(logits, actions, 100.0 * (spent + fixed))

    def _macs_taken(self, n_layers_run: int) -> float:
        """Return the MACs of the gate for an image that runs a number of layers."""
        if n_layers_run not in self._gate_macs:
            macs = macs_taken(self._gate, torch.tensor([n_layers_run]), self._backbone.costs)
            self._gate_macs[n_layers_run] = float(macs)
        return self._gate_macs[n_layers_run]


def _table(table: Sequence[int]) -> Choose:
    return lambda _hidden, layer, _spent, _actions: table[layer]
