"""Rollouts of single images, with plain numbers in place of tensors of one row."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_rl.backbones.base import InferenceBackbone
from dfs_rl.backbones.interfaces import GatedBackbone, WithExits
from dfs_rl.costs import SKIP
from dfs_rl.gating.action_masks import action_mask, end_mask
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.networks import LearnedGate, OneShotGate, macs_taken
from dfs_rl.gating.numpy_forms import GATE_FORMS, NoFormError, Reader, Views, network_of
from dfs_rl.gating.observation import scaled_budget, scaled_cost
from dfs_rl.gating.passes import (
    AGAIN,
    AGAIN_MIRRORED,
    ANSWER,
    CONFIDENCE,
    FINISHED,
    MIRRORED,
    AnswerRule,
    combine,
    passes_of,
    write_evidence,
)
from dfs_rl.gating.rules import Rule, RuleGate, RulePass

Choose = Callable[[Tensor, int, float, list[int]], int]
"""Maps an activation, its layer, the spent fraction and the actions of the pass to an action."""


class SingleRollout(NamedTuple):
    """Rollout of one image.

    Attributes:
        logits: float32 ``[1, classes]``.
        passes: Action at each layer, see ``Trace.options``, of each pass.
        computation: Percent of running every gated layer at 32 bit, see ``Trace``.
    """

    logits: Tensor
    passes: list[list[int]]
    computation: float


class _RuleForm:
    """Decisions of a rule."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def start(self, evidence: list[float]) -> Choose:
        """Return the options of a pass."""
        options = self._rule.passes[_n_finished(evidence)].options
        return lambda _hidden, layer, _spent, _actions: options[layer]

    def at_end(self, spent: float, evidence: list[float], predict: Callable[[], int]) -> int:  # noqa: ARG002
        """Return the action at the end of a pass."""
        rule, n = self._rule, _n_finished(evidence)
        if n == len(rule.passes):
            return ANSWER
        certainty = evidence[CONFIDENCE]
        if rule.gains:
            seen, classes = torch.tensor([evidence]), torch.tensor([predict()])
            certainty = rule.certainty(n - 1, seen, classes).item()
        if not certainty < np.float32(rule.thresholds[n - 1]):
            return ANSWER
        return AGAIN_MIRRORED if rule.passes[n].mirrored else AGAIN


def _predicted_class(
    logits: NDArray[np.float32], finished: NDArray[np.int64], rule: AnswerRule
) -> int:
    return int(combine(logits, finished, rule)[1].argmax())


def _n_finished(evidence: list[float]) -> int:
    return int(sum(evidence[FINISHED:]))


class _LearnedForm:
    """Decisions of a built-in learned gate, equal to those of ``observe`` and ``decide``.

    Sums in another order round differently, so two logits that agree to about six digits may change
    places.
    """

    def __init__(self, backbone: GatedBackbone, gate: LearnedGate, budget: float | None) -> None:
        if type(gate) not in GATE_FORMS:
            raise NoFormError
        self._gate, self._costs, self._budget = gate, backbone.costs, budget
        self.views = Views()
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

    def start(self, evidence: list[float]) -> Choose:
        """Return the decisions of a pass."""
        gate, costs, readers, budget = self._gate, self._costs, self._readers, self._budget
        score, macs = self._form(), gate.macs
        left, rest = self._left(), self._rest(evidence)
        last_option = max(1, len(gate.options) - 1)
        no_inputs = np.empty(0, dtype=np.float32)

        def choose(hidden: Tensor, layer: int, spent: float, actions: list[int]) -> int:
            inputs = no_inputs
            if layer < len(readers):
                previous = actions[-1] / last_option if actions else 0.0
                inputs = readers[layer](hidden, [scaled_cost(spent), left, previous, *rest])
            scores = score(layer, inputs)
            if budget is None:
                return gate.choices[int(scores.argmax())]
            allowed = action_mask(costs, layer, spent, budget, gate_macs=macs)
            # Actions that a layer does not have are the cheapest option, and so is the exit action
            # where there is no exit.
            allowed += allowed[:1] * (gate.n_actions - len(allowed))
            if gate.exits is not None and layer not in gate.exits.after:
                allowed[-1] = allowed[0]
            fits = [allowed[choice] for choice in gate.choices]
            if not any(fits):
                return gate.choices[0]
            return gate.choices[int(np.where(fits, scores, -np.inf).argmax())]

        return choose

    def at_end(self, spent: float, evidence: list[float], predict: Callable[[], int]) -> int:  # noqa: ARG002
        """Return the action at the end of a pass."""
        gate, costs = self._gate, self._costs
        context = [scaled_cost(spent), self._left(), 0.0, *self._rest(evidence)]
        scores = self._form()(costs.n_layers, np.array(context, dtype=np.float32))
        fits = end_mask(costs, gate.passes, spent, self._budget, gate_macs=gate.macs)
        return int(np.where(fits, scores[: len(fits)], -np.inf).argmax())

    def _left(self) -> float:
        """Return the budget as the context contains it."""
        if self._budget is None:
            return 1.0
        return scaled_budget(self._costs, self._budget, gate_macs=self._gate.macs)

    def _rest(self, evidence: list[float]) -> list[float]:
        """Return the context after spent cost, budget and previous option."""
        gate = self._gate
        return evidence if gate.budget_conditioning is None else [gate.preference, *evidence]


class SingleImageForm:
    """Rollouts of a gate on one image each, with the results of ``rollout``.

    Where ``fits`` no longer holds, a new form is needed.
    """

    def __init__(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> None:
        self._backbone, self.gate = backbone, gate
        self._made_for = backbone, gate, backbone.costs, budget
        self._costs: list[list[float]] = backbone.costs.action_costs().tolist()
        self._bits = (*backbone.options, SKIP)
        self._gate_macs: dict[int, float] = {}
        self._views: Views | None = None
        self._decisions: Callable[[], _RuleForm | _LearnedForm] | None = None
        if isinstance(gate, LearnedGate):
            with suppress(NoFormError):
                learned = _LearnedForm(backbone, gate, budget)
                self._views, self._decisions = learned.views, lambda: learned
        elif type(gate) is TableGate and budget is None:
            rule = Rule(passes=(RulePass(options=gate.table),))
            self._decisions = lambda: _RuleForm(rule)
        elif type(gate) is RuleGate and budget is None:
            self._decisions = lambda: _RuleForm(gate.rule)  # that of the present preference

    @property
    def usable(self) -> bool:
        """True if the gate has a form; otherwise ``run`` must not be called."""
        return self._decisions is not None

    def fits(self, backbone: GatedBackbone, gate: Gate, budget: float | None) -> bool:
        """Return whether this is the form of these, with the weights that they have now."""
        made_for = backbone, gate, backbone.costs, budget
        same = all(a is b for a, b in zip(self._made_for, made_for, strict=True))
        return same and (self._views is None or self._views.are_current())

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
        assert self._decisions is not None, "a form that is not usable does not run"
        gate, decisions = self.gate, self._decisions()
        costs, settings = self._backbone.costs, passes_of(gate)
        logits = np.zeros((1, settings.limit, self._backbone.n_classes), dtype=np.float32)
        seen = np.zeros((1, settings.evidence_size), dtype=np.float32)
        passes: list[list[int]] = []
        view, spent, computation = image, 0.0, 0.0
        while True:
            evidence = seen[0].tolist()
            answer, actions, cost = self._run_pass(view, decisions.start(evidence), spent)
            passes.append(actions)
            fixed = costs.fixed_cost(gate_macs=self._macs_taken(self.n_layers_run(actions)))
            computation += 100.0 * (cost + fixed)
            if settings.limit == 1:
                return SingleRollout(answer, passes, computation)
            spent += cost
            finished, last = np.array([len(passes)]), np.array([actions])
            logits[0, len(passes) - 1] = answer[0].cpu().numpy()
            if len(passes) == settings.limit:
                break
            write_evidence(seen, settings, logits, finished, last, full=costs.options.full)
            predict = partial(_predicted_class, logits, finished, settings.answer)
            action = decisions.at_end(spent, seen[0].tolist(), predict)
            if action == ANSWER:
                break
            spent += costs.fixed_cost(gate_macs=gate.macs)
            seen[0, MIRRORED] = action == AGAIN_MIRRORED
            view = image.flip(-1) if action == AGAIN_MIRRORED else image
        combined, _ = combine(logits, finished, settings.answer)
        return SingleRollout(torch.from_numpy(combined).to(answer.device), passes, computation)

    def _run_pass(
        self, image: Tensor, choose: Choose, before: float
    ) -> tuple[Tensor, list[int], float]:
        """Run one image from the stem to its answer; return logits, actions and their cost.

        ``before`` is the cost of earlier passes.
        """
        backbone, costs = self._backbone, self._backbone.costs
        exits_after, exit_action = costs.exits_after, costs.exit_action
        bits, layer_costs = self._bits, self._costs
        actions: list[int] = []
        hidden, spent = backbone.stem(image), 0.0
        for layer, gated in enumerate(backbone.layers):
            action = choose(hidden, layer, before + spent, actions)
            if action >= exit_action:
                if action == exit_action and layer in exits_after:
                    break
                action = 0  # the cheapest option, see ``CostTable``
            actions.append(action)
            spent += layer_costs[layer][action]
            hidden = gated(hidden, bits[action])
        layer = len(actions)
        if layer == costs.n_layers:
            return backbone.head(hidden), actions, spent
        assert isinstance(backbone, WithExits), "a backbone with exits in its costs has heads"
        actions += [exit_action] * (costs.n_layers - layer)
        return backbone.answer(hidden, layer), actions, spent + layer_costs[layer][exit_action]

    def _macs_taken(self, n_layers_run: int) -> float:
        """Return the MACs of the gate for an image that runs a number of layers."""
        if n_layers_run not in self._gate_macs:
            macs = macs_taken(self.gate, torch.tensor([n_layers_run]), self._backbone.costs)
            self._gate_macs[n_layers_run] = float(macs)
        return self._gate_macs[n_layers_run]
