"""Rollouts of a batch under a gate, for evaluation and deployment."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks, clamp_options
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.cascade import CascadeGate, FirstPass
from dfs_rl.gating.early_exit import ActiveBatch
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
    backbone: WalkableBackbone,
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
        budget: Upper bound on each image's computation in percent, fixed parts and gate included. A
            learned gate takes the allowed action with the largest logit; choices of other gates are
            lowered to the most expensive allowed option.
        preferences: Preference for each image, float32 ``[batch]``; ``None`` for the gate's own.

    Returns:
        Logits and options.

    Raises:
        ConfigError: If the budget is below the cost of the cheapest options, or is set for a
            cascade, which supports none.
    """
    if isinstance(gate, CascadeGate):
        if budget is not None:
            raise ConfigError(
                f"budget is {budget:g} %, but {gate.name!r} is a cascade, which runs some images "
                "twice and bounds the mean alone."
            )
        return _run_cascade(backbone, gate, images)
    if preferences is None and isinstance(gate, LearnedGate):
        preferences = gate.preferences(len(images), images.device)
    gate.reset(len(images))
    return _run_pass(backbone, gate, images, budget=budget, preferences=preferences)


def _run_cascade(backbone: WalkableBackbone, gate: CascadeGate, images: Tensor) -> RolloutResult:
    """Run all images once, and those below the confidence threshold again."""
    gate.reset(len(images))
    logits, first, _ = _run_pass(backbone, gate, images)
    again = gate.should_escalate(logits)
    rows = again.nonzero()[:, 0]
    options = first
    if len(rows):
        gate.start_second_pass(len(rows))
        second = _run_pass(backbone, gate, images[rows])
        logits = logits.index_copy(0, rows, second.logits)
        options = first.index_copy(0, rows, second.options)
    return RolloutResult(logits, options, FirstPass(options=first, escalated=again))


def _run_pass(
    backbone: WalkableBackbone,
    gate: Gate,
    images: Tensor,
    *,
    budget: float | None = None,
    preferences: Tensor | None = None,
) -> RolloutResult:
    """Run a batch once; the caller resets the gate."""
    active = ActiveBatch(backbone, images)
    with_features = not isinstance(gate, TableGate | CascadeGate)
    while active.unfinished:
        active_preferences = None if preferences is None else active.gather(preferences)
        seen = observe(
            backbone,
            active.state,
            budget=budget,
            gate_macs=gate.macs,
            preferences=active_preferences,
            with_features=with_features,
        )
        active.advance(_choose(backbone, gate, active, seen, budget))
    _, logits, options, _ = active.outputs()
    return RolloutResult(logits, options)


def _choose(
    backbone: WalkableBackbone,
    gate: Gate,
    active: ActiveBatch,
    seen: Observation,
    budget: float | None,
) -> Tensor:
    """Return the action of each active image, within the budget.

    A gate may keep state per position in the batch, so it receives all images; its choices for
    images that have left are dropped.
    """
    costs, state = backbone.costs, active.state
    asked = [active.scatter(part) for part in (seen.features, seen.context)]
    if budget is None:
        return active.gather(gate.decide(asked[0], seen.layer, asked[1]))
    allowed = action_masks(costs, state.layer, state.spent, budget, gate_macs=gate.macs)
    if isinstance(gate, LearnedGate):  # the mask applies to its logits, as in training
        scatter = active.scatter(allowed[:, : gate.n_actions])
        return active.gather(gate.decide(asked[0], seen.layer, asked[1], scatter))
    chosen = active.gather(gate.decide(asked[0], seen.layer, asked[1]))
    leaving = costs.exit_action if costs.exits else None
    return clamp_options(chosen, allowed, exit_action=leaving)
