"""A whole walk under a gate: the one loop behind evaluation and deployment."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.gating.gates import Gate
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.masks import action_masks, clamp_options
from dfs_rl.gating.observation import observe
from dfs_rl.gating.walk import finish, start, step


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
        budget: Upper bound on each image's computation in percent, fixed parts and gate included. A choice that would break it is
            lowered to the dearest one that does not.
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
        options = gate.decide(seen.features, seen.layer, seen.context)
        if budget is not None:
            mask = action_masks(
                backbone.costs, state.layer, state.spent, budget, gate_macs=gate.macs
            )
            options = clamp_options(options, mask)
        state = step(backbone, state, options, reuse=True)
    return RolloutResult(logits=finish(backbone, state), options=state.options, spent=state.spent)
