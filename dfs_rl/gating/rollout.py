"""Rollouts of a batch under a gate, for evaluation and deployment."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.gating.action_masks import action_masks, clamp_options, end_masks
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.execution import ExecutionState, advance, run_stem
from dfs_rl.gating.networks import LearnedGate, observed_macs
from dfs_rl.gating.observation import Observation, observe
from dfs_rl.gating.passes import ANSWER, EarlierPasses, PassHistory, passes_of
from dfs_rl.gating.rules import RuleGate


class RolloutResult(NamedTuple):
    """Result of a rollout.

    Attributes:
        logits: float32 ``[batch, classes]``.
        options: Options of the last pass, int64 ``[batch, layers]``; ``CostTable.exit_action`` for
            layers after an image's exit.
        earlier: The passes before the last one; ``None`` for a gate that runs a single pass.
    """

    logits: Tensor
    options: Tensor
    earlier: EarlierPasses | None = None


@torch.no_grad()
def rollout(
    backbone: GatedBackbone,
    gate: Gate,
    images: Tensor,
    *,
    budget: float | None = None,
    preferences: Tensor | None = None,
) -> RolloutResult:
    """Run a batch through the network with a gate that chooses at every layer.

    Args:
        backbone: The network.
        gate: The gate.
        images: uint8 ``[batch, c, h, w]``, or float in [0, 1].
        budget: Upper bound on each image's computation in percent, everything included. A learned
            gate takes the allowed action with the largest logit; choices of other gates are lowered
            to the most expensive allowed option. Another pass runs only if it fits.
        preferences: Preference of each image, float32 ``[batch]``; ``None`` for the gate's own.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest options.
    """
    n = len(images)
    if (
        preferences is None
        and isinstance(gate, LearnedGate | RuleGate)
        and gate.budget_conditioning is not None
    ):
        preferences = torch.full((n,), gate.preference, device=images.device)
    if isinstance(gate, LearnedGate):
        gate = copy.copy(gate)  # with a memory of its own: threads may share a model
    gate.reset(n)
    run = _Pass(backbone, gate, n, budget, preferences)
    settings = passes_of(gate)
    if settings.limit == 1:
        logits, last = run.to_answers(run_stem(backbone, images))
        return RolloutResult(logits, last.options)
    macs, device = observed_macs(gate), images.device
    history = PassHistory(settings, backbone, n, gate_macs=macs, device=device)
    run.history = history
    everything = torch.arange(n, device=device)
    state = run_stem(backbone, images)._replace(rows=everything)
    for i in range(settings.limit):
        logits, last = run.to_answers(state)
        assert last.rows is not None, "it has those of the stem"
        history.finish(last.rows, logits, last.options, last.spent)
        if i + 1 < settings.limit:
            state = history.run_again(backbone, last, run.at_end(last), lambda rows: images[rows])
        if len(state.spent) == 0:
            break
    return RolloutResult(
        history.answer(everything), history.last_options(everything), history.earlier(everything)
    )


class _Pass:
    """Passes of a batch of ``n`` images, one at a time; the arguments are those of ``rollout``."""

    history: PassHistory | None = None

    def __init__(
        self,
        backbone: GatedBackbone,
        gate: Gate,
        n: int,
        budget: float | None,
        preferences: Tensor | None,
    ) -> None:
        self._backbone, self._gate, self._n = backbone, gate, n
        self._budget, self._preferences = budget, preferences
        self._reads_features = not isinstance(gate, TableGate | RuleGate)
        if isinstance(gate, LearnedGate):
            self._reads_features = max(gate.feature_sizes) > 0

    def to_answers(self, state: ExecutionState) -> tuple[Tensor, ExecutionState]:
        """Run a state from the first layer on; return logits and last states in its order."""
        finished = []
        while state.layer < self._backbone.costs.n_layers and len(state.spent):
            state, ended = advance(self._backbone, state, self._choose(state), reuse=True)
            finished += ended
        logits, options, spent = (
            torch.cat(parts)
            for parts in zip(*((y, s.options, s.spent) for s, y in finished), strict=True)
        )
        if state.rows is None:
            return logits, state
        rows, order = torch.cat([s.rows for s, _ in finished if s.rows is not None]).sort()
        nothing = logits.new_empty(0)  # the activation is no longer needed
        last = ExecutionState(nothing, state.layer, options[order], spent[order], rows)
        return logits[order], last

    def at_end(self, state: ExecutionState) -> Tensor:
        """Return the action at the end of a pass that is not the last one."""
        costs, gate = self._backbone.costs, self._gate
        mask = end_masks(costs, passes_of(gate), state.spent, self._budget, gate_macs=gate.macs)
        seen = self._observe(state, ended=True)
        if isinstance(gate, RuleGate) and gate.n_classes is not None:
            assert self.history is not None, "a pass has just ended"
            assert state.rows is not None, "several passes need the rows of a state"
            seen = seen._replace(features=self.history.answer(state.rows))
        actions = self._decide(seen, state, mask)
        fits = mask.gather(1, actions.clamp(max=mask.shape[1] - 1)[:, None])[:, 0]
        return actions.masked_fill(~fits, ANSWER)

    def _choose(self, state: ExecutionState) -> Tensor:
        """Return the action of each remaining image at the next layer, within the budget."""
        costs, gate, allowed = self._backbone.costs, self._gate, None
        if self._budget is not None:
            allowed = action_masks(
                costs, state.layer, state.spent, self._budget, gate_macs=gate.macs
            )
        actions = self._decide(self._observe(state), state, allowed)
        if isinstance(gate, LearnedGate):  # the mask applied to its logits, as in training
            if gate.n_actions > costs.n_actions:  # actions that no layer has
                actions = actions.masked_fill(actions >= costs.n_actions, 0)
            return actions
        if allowed is None:
            return actions
        exit_action = costs.exit_action if costs.exits else None
        return clamp_options(actions, allowed, exit_action=exit_action)

    def _observe(self, state: ExecutionState, *, ended: bool = False) -> Observation:
        gate, preferences, history = self._gate, self._preferences, self.history
        return observe(
            self._backbone,
            state,
            budget=self._budget,
            gate_macs=observed_macs(gate),
            preferences=None if preferences is None else state.pick(preferences),
            evidence=None if history is None else state.pick(history.evidence),
            ended=ended,
            with_features=self._reads_features,
        )

    def _decide(self, seen: Observation, state: ExecutionState, allowed: Tensor | None) -> Tensor:
        """Return the gate's action for each remaining image.

        A gate may keep state per index in the batch, so it receives all images; its choices for
        images that have left are dropped.
        """
        gate, rows = self._gate, state.rows

        def of_all(values: Tensor) -> Tensor:
            """Expand values of the remaining images to the batch, zero for the others."""
            if rows is None:
                return values
            return values.new_zeros(self._n, *values.shape[1:]).index_copy(0, rows, values)

        inputs = of_all(seen.features), seen.layer, of_all(seen.context)
        if allowed is None or not isinstance(gate, LearnedGate):
            return state.pick(gate.decide(*inputs))
        missing = gate.n_actions - allowed.shape[1]
        if missing > 0:  # actions at the end of a pass alone; at a layer they are the cheapest
            allowed = torch.cat([allowed, allowed[:, :1].expand(-1, missing)], dim=1)
        return state.pick(gate.decide(*inputs, of_all(allowed[:, : gate.n_actions])))
