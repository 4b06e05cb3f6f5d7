"""Rollouts of a batch under a gate, for evaluation and deployment."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks, clamp_options
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.cascade import CascadeGate, FirstPass
from dfs_rl.gating.execution import ExecutionState, Finished, advance, run_head, run_stem
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import Observation, observe


class RolloutResult(NamedTuple):
    """Result of a rollout.

    Attributes:
        logits: float32 ``[batch, classes]``.
        options: Options of the pass that gave the answer, int64 ``[batch, layers]``;
            ``CostTable.exit_action`` for layers after an image's exit.
        first_pass: The first pass of a cascade; ``None`` for other gates.
    """

    logits: Tensor
    options: Tensor
    first_pass: FirstPass | None = None


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
            to the most expensive allowed option.
        preferences: Preference of each image, float32 ``[batch]``; ``None`` for the gate's own.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest options, or is set for a
            cascade.
    """
    if isinstance(gate, CascadeGate):
        if budget is not None:
            raise ConfigError(
                f"budget is {budget:g} %, but {gate.name!r} is a cascade, which runs some images "
                "twice and bounds only the mean."
            )
        return _run_cascade(backbone, gate, images)
    if preferences is None and isinstance(gate, LearnedGate):
        preferences = gate.preferences(len(images), images.device)
    gate.reset(len(images))
    return _run_pass(backbone, gate, images, budget=budget, preferences=preferences)


def _run_cascade(backbone: GatedBackbone, gate: CascadeGate, images: Tensor) -> RolloutResult:
    """Run all images once, and those below the confidence threshold again."""
    logits, first, _ = _run_pass(backbone, gate.first, images)
    again = gate.should_escalate(logits)
    rows = again.nonzero()[:, 0]
    options = first
    if len(rows):
        second = _run_pass(backbone, gate.second, images[rows])
        logits = logits.index_copy(0, rows, second.logits)
        options = first.index_copy(0, rows, second.options)
    return RolloutResult(logits, options, FirstPass(options=first, escalated=again))


def _run_pass(
    backbone: GatedBackbone,
    gate: Gate,
    images: Tensor,
    *,
    budget: float | None = None,
    preferences: Tensor | None = None,
) -> RolloutResult:
    """Run a batch from the stem to the answers; the caller resets the gate."""
    costs, finished = backbone.costs, []
    state = run_stem(backbone, images)
    while state.layer < costs.n_layers and len(state.spent):
        seen = observe(
            backbone,
            state,
            budget=budget,
            gate_macs=gate.macs,
            preferences=None if preferences is None else _gather(preferences, state.rows),
            with_features=not isinstance(gate, TableGate),
        )
        actions = _choose(backbone, gate, state, seen, budget, len(images))
        state, exited = advance(backbone, state, actions, reuse=True)
        if exited is not None:
            finished.append(exited)
    if len(state.spent):
        finished.append(Finished(state, run_head(backbone, state)))
    logits, options = (
        torch.cat(parts)
        for parts in zip(*((logits, state.options) for state, logits in finished), strict=True)
    )
    if state.rows is None:
        return RolloutResult(logits, options)
    order = torch.cat([state.rows for state, _ in finished if state.rows is not None]).argsort()
    return RolloutResult(logits[order], options[order])


def _choose(
    backbone: GatedBackbone,
    gate: Gate,
    state: ExecutionState,
    seen: Observation,
    budget: float | None,
    n: int,
) -> Tensor:
    """Return the action of each remaining image, within the budget.

    A gate may keep state per index in the batch, so it receives all ``n`` images; its choices for
    images that have left are dropped.
    """
    rows = state.rows
    inputs = _scatter(seen.features, rows, n), seen.layer, _scatter(seen.context, rows, n)
    if budget is None:
        return _gather(gate.decide(*inputs), rows)
    allowed = action_masks(backbone.costs, state.layer, state.spent, budget, gate_macs=gate.macs)
    if isinstance(gate, LearnedGate):  # the mask applies to its logits, as in training
        mask = _scatter(allowed[:, : gate.n_actions], rows, n)
        return _gather(gate.decide(*inputs, mask), rows)
    exit_action = backbone.costs.exit_action if backbone.costs.exits else None
    return clamp_options(_gather(gate.decide(*inputs), rows), allowed, exit_action=exit_action)


def _gather(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _scatter(values: Tensor, rows: Tensor | None, n: int) -> Tensor:
    """Expand values of the remaining images to the whole batch, zero for the others."""
    if rows is None:
        return values
    return values.new_zeros(n, *values.shape[1:]).index_copy(0, rows, values)
