"""A whole walk under a gate: the one loop behind evaluation and deployment."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.gating.gates import Gate
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.masks import action_masks, clamp_options
from dfs_rl.gating.observation import Observation, observe
from dfs_rl.gating.walk import WalkState, finish, start, step


class RolloutResult(NamedTuple):
    """What came of a walk.

    Attributes:
        logits: float32 ``[batch, classes]``.
        options: Option indices that were run, int64 ``[batch, layers]``.
        spent: Cost of the gated layers as a fraction, float64 ``[batch]``.
    """

    logits: Tensor
    options: Tensor
    spent: Tensor


@torch.no_grad()
def rollout(
    backbone: WalkableBackbone,
    gate: Gate,
    images: Tensor,
    *,
    budget: float | None = None,
    positions: Tensor | None = None,
) -> RolloutResult:
    """Walk a batch through the network with a gate choosing at every layer.

    Args:
        backbone: The network.
        gate: What chooses.
        images: uint8 ``[batch, c, h, w]``, or float in [0, 1].
        budget: Upper bound on each image's computation in percent, fixed parts and gate included. A learned gate's choice is the
            best of those that keep it, by its logits; any other gate's is lowered to the dearest one that does.
        positions: Of the gate's dial for each image, float32 ``[batch]``; ``None`` for the gate's own.

    Returns:
        Logits and what was run.

    Raises:
        ConfigError: If the budget does not suffice for the cheapest choices.
    """
    if positions is None and isinstance(gate, LearnedGate):
        positions = gate.positions(len(images), images.device)
    gate.reset(len(images))
    state = start(backbone, images)
    while state.layer < backbone.costs.n_layers:
        seen = observe(backbone, state, budget=budget, positions=positions)
        options = _choose(backbone, gate, state, seen, budget)
        state = step(backbone, state, options, reuse=True)
    return RolloutResult(logits=finish(backbone, state), options=state.options, spent=state.spent)


def _choose(
    backbone: WalkableBackbone,
    gate: Gate,
    state: WalkState,
    seen: Observation,
    budget: float | None,
) -> Tensor:
    """Return each sample's option, within the budget."""
    if budget is None:
        return gate.decide(seen.features, seen.layer, seen.context)
    allowed = action_masks(backbone.costs, state.layer, state.spent, budget, gate_macs=gate.macs)
    if isinstance(gate, LearnedGate):  # it knows its second choice, as the agent did that it was
        return gate.decide(seen.features, seen.layer, seen.context, allowed)
    return clamp_options(gate.decide(seen.features, seen.layer, seen.context), allowed)
