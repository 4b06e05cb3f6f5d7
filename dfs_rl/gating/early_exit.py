"""Step of a batch whose images may take an exit, and the batch of images still active."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import CostTable
from dfs_rl.gating.batch_indexing import gather_rows
from dfs_rl.gating.execution import ExecutionState, run_head, run_layer, run_stem


class ActionCosts(NamedTuple):
    """Costs of the actions of a cost table, cached on one device; read-only.

    Attributes:
        actions: ``CostTable.action_costs``, float64 ``[layers, actions]``.
        least: ``CostTable.least_costs``, float64 ``[layers + 1]``.
    """

    actions: Tensor
    least: Tensor


@lru_cache(maxsize=64)
def action_costs(costs: CostTable, device: torch.device) -> ActionCosts:
    """Return the costs of the actions, computed once per table and device."""
    with torch.inference_mode(mode=False):
        return ActionCosts(costs.action_costs().to(device), costs.least_costs().to(device))


class ExecutionOutput(NamedTuple):
    """Outputs of finished images.

    Attributes:
        rows: Indices of the images in the batch, int64 ``[n]``.
        logits: float32 ``[n, classes]``.
        options: Options of the images, int64 ``[n, layers]``, see ``CostTable``.
        spent: Cost of the options as a fraction, float64 ``[n]``.
    """

    rows: Tensor
    logits: Tensor
    options: Tensor
    spent: Tensor


class StepResult(NamedTuple):
    """Result of a step.

    Attributes:
        state: State of the remaining images, one layer further; empty if all have left.
        remaining: Indices of the remaining images in the batch, int64 ``[n]``; ``None`` for all.
        exited: Outputs of the images that left before the layer; ``None`` if none did.
    """

    state: ExecutionState
    remaining: Tensor | None
    exited: ExecutionOutput | None


def advance(
    backbone: WalkableBackbone, state: ExecutionState, actions: Tensor, *, reuse: bool = False
) -> StepResult:
    """Run the next layer, or take the exit before it, for each image.

    Images that leave are removed from the batch, so no later layer runs for them.

    Args:
        backbone: The network.
        state: State of the batch; at least one layer must be left.
        actions: int64 ``[batch]``. At a layer without an exit the exit action means the cheapest
            option, see ``CostTable``.
        reuse: Overwrite ``state.hidden`` if possible, see ``run_layer``.

    Returns:
        The remaining images and the outputs of those that left.
    """
    costs = backbone.costs
    if not costs.exits:
        return StepResult(run_layer(backbone, state, actions, reuse=reuse), None, None)
    leaving = actions == costs.exit_action
    if state.layer not in costs.exits_after:
        options = actions.masked_fill(leaving, 0)
        return StepResult(run_layer(backbone, state, options, reuse=reuse), None, None)
    rows = leaving.nonzero()[:, 0]
    if len(rows) == 0:
        return StepResult(run_layer(backbone, state, actions, reuse=reuse), None, None)
    remaining = (~leaving).nonzero()[:, 0]
    exited = _exit_output(backbone, state, rows)
    remaining_state = gather_state(state, remaining)
    if len(remaining) == 0:
        return StepResult(remaining_state._replace(layer=state.layer + 1), remaining, exited)
    # The remaining state is a copy, so it may be overwritten.
    after = run_layer(
        backbone, remaining_state, actions[remaining], reuse=not torch.is_grad_enabled()
    )
    return StepResult(after, remaining, exited)


def _exit_output(
    backbone: WalkableBackbone, state: ExecutionState, rows: Tensor
) -> ExecutionOutput:
    """Compute the outputs of the images that take the exit before the next layer."""
    assert isinstance(backbone, WithExits), "a network whose costs know exits has them"
    costs, layer = backbone.costs, state.layer
    here = gather_state(state, rows)
    here.options[:, layer:] = costs.exit_action
    exit_cost = action_costs(costs, here.spent.device).actions[layer, costs.exit_action]
    logits = backbone.answer(here.hidden, layer)
    return ExecutionOutput(rows, logits, here.options, here.spent + exit_cost)


def gather_state(state: ExecutionState, rows: Tensor) -> ExecutionState:
    """Return copies of selected rows of a state; a row may be selected more than once."""
    return ExecutionState(
        hidden=gather_rows(state.hidden, rows),
        layer=state.layer,
        options=state.options[rows],
        spent=state.spent[rows],
    )


class ActiveBatch:
    """Batch of images in a network, some of which may have left.

    Args:
        backbone: The network.
        images: uint8 ``[batch, c, h, w]``, or float in [0, 1].

    Attributes:
        state: State of the active images.
        rows: Indices of the active images in the batch, int64; ``None`` for all.
    """

    def __init__(self, backbone: WalkableBackbone, images: Tensor) -> None:
        self._backbone = backbone
        self._n = len(images)
        self._exited: list[ExecutionOutput] = []
        self.state = run_stem(backbone, images)
        self.rows: Tensor | None = None

    @property
    def unfinished(self) -> bool:
        """True while a layer is left and at least one image is active."""
        some = len(self.state.spent) > 0
        return some and self.state.layer < self._backbone.costs.n_layers

    def scatter(self, values: Tensor) -> Tensor:
        """Expand values of the active images to the whole batch, zero for the others."""
        if self.rows is None:
            return values
        return values.new_zeros(self._n, *values.shape[1:]).index_copy(0, self.rows, values)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of the active images."""
        return values if self.rows is None else values[self.rows]

    def advance(self, actions: Tensor) -> None:
        """Apply the actions of the active images, int64."""
        state, remaining, exited = advance(self._backbone, self.state, actions, reuse=True)
        if exited is not None:
            self._exited.append(exited._replace(rows=self._batch_rows(exited.rows)))
        if remaining is not None:
            self.rows = self._batch_rows(remaining)
        self.state = state

    def _batch_rows(self, rows: Tensor) -> Tensor:
        """Return the batch indices of rows of the active images."""
        return rows if self.rows is None else self.rows[rows]

    def outputs(self) -> ExecutionOutput:
        """Return the outputs of all images in the order of the batch, once all are finished."""
        rows, state = self.rows, self.state
        if rows is None:
            rows = torch.arange(self._n, device=state.spent.device)
        arrived = [*self._exited]
        if len(rows):
            logits = run_head(self._backbone, state)
            arrived.append(ExecutionOutput(rows, logits, state.options, state.spent))
        if len(arrived) == 1 and self.rows is None:
            return arrived[0]
        order = torch.cat([part.rows for part in arrived]).argsort()
        return ExecutionOutput(
            *(torch.cat(parts)[order] for parts in zip(*arrived, strict=True)),
        )
