"""Step of a batch whose samples may take an exit in place of the next layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.gating.execution import ExecutionState, action_costs, gather_state, run_layer


class Finished(NamedTuple):
    """Samples with an answer.

    Attributes:
        state: Last state of the samples. After an exit, ``layer`` is the layer that would have been
            next, ``options`` holds the exit action from there on, and ``spent`` includes the exit.
        logits: float32 ``[batch, classes]``.
    """

    state: ExecutionState
    logits: Tensor


def advance(
    backbone: WalkableBackbone, state: ExecutionState, actions: Tensor, *, reuse: bool = False
) -> tuple[ExecutionState, Finished | None]:
    """Run the next layer, or take the exit before it, for each sample.

    Args:
        backbone: The network.
        state: State of the batch; at least one layer must be left.
        actions: int64 ``[batch]``. At a layer without an exit the exit action means the cheapest
            option, see ``CostTable``.
        reuse: Overwrite ``state.hidden`` if possible, see ``run_layer``.

    Returns:
        The state of the remaining samples after the layer, empty if all have left, and the samples
        that took the exit, ``None`` if none did.
    """
    costs = backbone.costs
    if not costs.exits:
        return run_layer(backbone, state, actions, reuse=reuse), None
    leaving = actions == costs.exit_action
    if state.layer not in costs.exits_after:
        return run_layer(backbone, state, actions.masked_fill(leaving, 0), reuse=reuse), None
    samples = leaving.nonzero()[:, 0]
    if len(samples) == 0:
        return run_layer(backbone, state, actions, reuse=reuse), None
    exited = _take_exit(backbone, gather_state(state, samples))
    remaining = (~leaving).nonzero()[:, 0]
    rest = gather_state(state, remaining)
    if len(remaining) == 0:
        return rest._replace(layer=state.layer + 1), exited
    # The rest is a copy, so the layer may overwrite it.
    reuse = not torch.is_grad_enabled()
    return run_layer(backbone, rest, actions[remaining], reuse=reuse), exited


def _take_exit(backbone: WalkableBackbone, state: ExecutionState) -> Finished:
    assert isinstance(backbone, WithExits), "a backbone with exits in its costs has exit heads"
    costs, layer = backbone.costs, state.layer
    state.options[:, layer:] = costs.exit_action
    exit_cost = action_costs(costs, state.spent.device)[layer, costs.exit_action]
    logits = backbone.answer(state.hidden, layer)
    return Finished(state._replace(spent=state.spent + exit_cost), logits)
