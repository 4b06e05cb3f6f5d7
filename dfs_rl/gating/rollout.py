"""A whole walk under a gate: the one loop behind evaluation and deployment."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.gating.exits import Walkers
from dfs_rl.gating.gates import Gate
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.masks import action_masks, clamp_options
from dfs_rl.gating.observation import Observation, observe


class RolloutResult(NamedTuple):
    """What came of a walk.

    Attributes:
        logits: float32 ``[batch, classes]``.
        options: What was run, int64 ``[batch, layers]``; of a layer that an image did not come to, ``CostTable.exit_action``.
        spent: Cost of the gated layers and of leaving as a fraction, float64 ``[batch]``.
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
    walkers = Walkers(backbone, images)
    while walkers.walking:
        turned = None if positions is None else walkers.pick(positions)
        seen = observe(backbone, walkers.state, budget=budget, positions=turned)
        walkers.advance(_choose(backbone, gate, walkers, seen, budget))
    _, logits, options, spent = walkers.answers()
    return RolloutResult(logits=logits, options=options, spent=spent)


def _choose(
    backbone: WalkableBackbone,
    gate: Gate,
    walkers: Walkers,
    seen: Observation,
    budget: float | None,
) -> Tensor:
    """Return the action of each sample that is still there, within the budget.

    A gate may remember its images by their place in the batch, so it is asked about all of them; what it says of those that have left
    counts nothing.
    """
    costs, state = backbone.costs, walkers.state
    asked = [walkers.spread(part) for part in (seen.features, seen.context)]
    if budget is None:
        return walkers.pick(gate.decide(asked[0], seen.layer, asked[1]))
    allowed = action_masks(costs, state.layer, state.spent, budget, gate_macs=gate.macs)
    if isinstance(gate, LearnedGate):  # it knows its second choice, as the agent did that it was
        spread = walkers.spread(allowed[:, : gate.n_actions])
        return walkers.pick(gate.decide(asked[0], seen.layer, asked[1], spread))
    chosen = walkers.pick(gate.decide(asked[0], seen.layer, asked[1]))
    leaving = costs.exit_action if costs.exits else None
    return clamp_options(chosen, allowed, exit_action=leaving)
