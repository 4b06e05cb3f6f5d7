"""A step of the walk at which images may leave: the one place where an action becomes an option or an answer."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import CostTable
from dfs_rl.gating.batch_indexing import gather_rows
from dfs_rl.gating.execution import WalkState, finish, start, step


class Prices(NamedTuple):
    """What a cost table says of actions, on one device; not to be changed.

    Attributes:
        actions: ``CostTable.action_costs``, float64 ``[layers, actions]``.
        least: ``CostTable.least_costs``, float64 ``[layers + 1]``.
    """

    actions: Tensor
    least: Tensor


@lru_cache(maxsize=64)
def prices_of(costs: CostTable, device: torch.device) -> Prices:
    """Return the prices of actions, computed once per table and device."""
    with torch.inference_mode(mode=False):
        return Prices(costs.action_costs().to(device), costs.least_costs().to(device))


class Answers(NamedTuple):
    """Images that came to an answer.

    Attributes:
        rows: Which of the batch that walked, int64 ``[n]``.
        logits: float32 ``[n, classes]``.
        options: What they did, int64 ``[n, layers]``, see ``CostTable``.
        spent: Cost of that as a fraction, float64 ``[n]``.
    """

    rows: Tensor
    logits: Tensor
    options: Tensor
    spent: Tensor


class Advance(NamedTuple):
    """What a step brought.

    Attributes:
        state: Of the images that walk on, one layer further; of none, if all have left.
        stayed: Which of the batch they are, int64 ``[n]``; ``None`` for all.
        left: Those that left before the layer, ``None`` if none did.
    """

    state: WalkState
    stayed: Tensor | None
    left: Answers | None


def advance(
    backbone: WalkableBackbone, state: WalkState, actions: Tensor, *, reuse: bool = False
) -> Advance:
    """Let each image leave, or run the next layer at its option.

    Images that leave are taken out of the batch, so nothing is run for them any more.

    Args:
        backbone: The network to walk through.
        state: Where the batch stands; there must be a layer left.
        actions: int64 ``[batch]``. Leaving where there is no exit means the cheapest option, see ``CostTable``.
        reuse: See ``step``.
    """
    costs = backbone.costs
    if not costs.exits:
        return Advance(step(backbone, state, actions, reuse=reuse), None, None)
    leaving = actions == costs.exit_action
    if state.layer not in costs.exits_after:
        options = actions.masked_fill(leaving, 0)
        return Advance(step(backbone, state, options, reuse=reuse), None, None)
    rows = leaving.nonzero()[:, 0]
    if len(rows) == 0:
        return Advance(step(backbone, state, actions, reuse=reuse), None, None)
    stayed = (~leaving).nonzero()[:, 0]
    left = _answers(backbone, state, rows)
    staying = picked(state, stayed)
    if len(stayed) == 0:
        return Advance(staying._replace(layer=state.layer + 1), stayed, left)
    # What was picked is a copy, so it can be written to.
    after = step(backbone, staying, actions[stayed], reuse=not torch.is_grad_enabled())
    return Advance(after, stayed, left)


def _answers(backbone: WalkableBackbone, state: WalkState, rows: Tensor) -> Answers:
    """Take the answers of the exit before the next layer."""
    assert isinstance(backbone, WithExits), "a network whose costs know exits has them"
    costs, layer = backbone.costs, state.layer
    here = picked(state, rows)
    here.options[:, layer:] = costs.exit_action
    price = prices_of(costs, here.spent.device).actions[layer, costs.exit_action]
    logits = backbone.answer(here.hidden, layer)
    return Answers(rows, logits, here.options, here.spent + price)


def picked(state: WalkState, rows: Tensor) -> WalkState:
    """Return images of a batch by their rows, copied; one may be picked more than once."""
    return WalkState(
        hidden=gather_rows(state.hidden, rows),
        layer=state.layer,
        options=state.options[rows],
        spent=state.spent[rows],
    )


class Walkers:
    """A batch of images on its way through a network, some of which have left.

    Args:
        backbone: The network.
        images: uint8 ``[batch, c, h, w]``, or float in [0, 1].

    Attributes:
        state: Of those that are still there.
        rows: Which of the batch they are, int64; ``None`` for all.
    """

    def __init__(self, backbone: WalkableBackbone, images: Tensor) -> None:
        self._backbone = backbone
        self._n = len(images)
        self._left: list[Answers] = []
        self.state = start(backbone, images)
        self.rows: Tensor | None = None

    @property
    def walking(self) -> bool:
        """Whether a layer is left, and an image to run it for."""
        some = len(self.state.spent) > 0
        return some and self.state.layer < self._backbone.costs.n_layers

    def spread(self, values: Tensor) -> Tensor:
        """Return values of the images that are still there for the whole batch, zero for the others."""
        if self.rows is None:
            return values
        return values.new_zeros(self._n, *values.shape[1:]).index_copy(0, self.rows, values)

    def pick(self, values: Tensor) -> Tensor:
        """Return the part of the batch's values that belongs to the images that are still there."""
        return values if self.rows is None else values[self.rows]

    def advance(self, actions: Tensor) -> None:
        """Go on by the actions of the images that are still there, int64."""
        state, stayed, left = advance(self._backbone, self.state, actions, reuse=True)
        if left is not None:
            self._left.append(left._replace(rows=self._of_batch(left.rows)))
        if stayed is not None:
            self.rows = self._of_batch(stayed)
        self.state = state

    def _of_batch(self, rows: Tensor) -> Tensor:
        """Return which of the batch these of the images that are still there are."""
        return rows if self.rows is None else self.rows[rows]

    def answers(self) -> Answers:
        """Return what all images came to, in the batch's order, once none is walking."""
        rows, state = self.rows, self.state
        if rows is None:
            rows = torch.arange(self._n, device=state.spent.device)
        arrived = [*self._left]
        if len(rows):
            logits = finish(self._backbone, state)
            arrived.append(Answers(rows, logits, state.options, state.spent))
        if len(arrived) == 1 and self.rows is None:
            return arrived[0]
        order = torch.cat([part.rows for part in arrived]).argsort()
        return Answers(
            *(torch.cat(parts)[order] for parts in zip(*arrived, strict=True)),
        )
