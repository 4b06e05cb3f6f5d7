"""Execution of the gated layers on a batch, one layer and one choice of actions at a time."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone, GatedLayer, WithExits, runs_when_skipped
from dfs_rl.costs import SKIP, BitOptions
from dfs_rl.gating.batch_indexing import empty_rows, gather_rows, scatter_rows

_SLAB_BYTES = 2**22
"""Size of activations that run through a layer at once: larger ones leave the CPU's caches."""
_MIN_SLAB = 8
"""Least number of samples that run at once: smaller batches run less efficiently."""


class ExecutionState(NamedTuple):
    """State of a batch whose samples are all at the same layer.

    Attributes:
        hidden: Input activation of layer ``layer``, ``[batch, ...]``.
        layer: Index of the next gated layer; equal to the number of layers at the end.
        options: Options chosen so far, int64 ``[batch, layers]``; 0 for layers not yet reached.
        spent: Cost of the gated layers so far as a fraction, float64 ``[batch]``.
        rows: Index of each sample in the batch that entered the stem, int64 ``[batch]``; ``None``
            for all of them, in order.
    """

    hidden: Tensor
    layer: int
    options: Tensor
    spent: Tensor
    rows: Tensor | None = None

    def pick(self, values: Tensor) -> Tensor:
        """Return the samples' part of values of the batch that entered the stem."""
        return values if self.rows is None else values[self.rows]

    @property
    def places(self) -> Tensor | slice:
        """Index of the samples in the batch that entered the stem."""
        return slice(None) if self.rows is None else self.rows


class Finished(NamedTuple):
    """Samples with an answer.

    Attributes:
        state: Last state of the samples. After an exit, ``layer`` is the layer that would have been
            next, ``options`` holds the exit action from there on, and ``spent`` includes the exit.
        logits: float32 ``[batch, classes]``.
    """

    state: ExecutionState
    logits: Tensor


def gather_state(state: ExecutionState, samples: Tensor) -> ExecutionState:
    """Return copies of some samples of a state, int64 ``samples``; a sample may occur twice."""
    return ExecutionState(
        hidden=gather_rows(state.hidden, samples),
        layer=state.layer,
        options=state.options[samples],
        spent=state.spent[samples],
        rows=samples if state.rows is None else state.rows[samples],
    )


def concatenate_states(states: Sequence[ExecutionState]) -> ExecutionState:
    """Return one state with the samples of several at the same layer, whose ``rows`` are set."""
    if len(states) == 1:
        return states[0]
    hidden, layers, options, spent, rows = zip(*states, strict=True)
    return ExecutionState(
        torch.cat(hidden), layers[0], torch.cat(options), torch.cat(spent), torch.cat(rows)
    )


def run_stem(backbone: GatedBackbone, images: Tensor) -> ExecutionState:
    """Run the stem on images, uint8 ``[batch, c, h, w]`` or float in [0, 1].

    The returned state shares no memory with ``images``.
    """
    hidden = backbone.stem(images)
    if hidden.untyped_storage().data_ptr() == images.untyped_storage().data_ptr():
        hidden = hidden.clone()
    n, device = len(images), images.device
    return ExecutionState(
        hidden=hidden,
        layer=0,
        options=torch.zeros(n, backbone.costs.n_layers, dtype=torch.int64, device=device),
        spent=torch.zeros(n, dtype=torch.float64, device=device),
    )


def run_layer(
    backbone: GatedBackbone, state: ExecutionState, options: Tensor, *, reuse: bool = False
) -> ExecutionState:
    """Run the next layer, every sample at its own option, int64 ``[batch]``.

    Samples are grouped by option and each group runs once. Skipped samples cost nothing: they stay
    in place, or pass only the shortcut if the layer changes the shape. A layer with a part that
    also runs when it is skipped runs that part.

    With ``reuse``, the layer overwrites ``state.hidden`` if the shape allows it, which saves a
    copy; every earlier state of this rollout is then invalid. Gradients must not be recorded.
    """
    layer = state.layer
    costs = backbone.costs.option_costs(options.device)[layer]
    chosen = state.options if reuse else state.options.clone()
    chosen[:, layer] = options
    hidden = _run_groups(
        backbone.layers[layer], backbone.options, state.hidden, options, reuse=reuse
    )
    return ExecutionState(hidden, layer + 1, chosen, state.spent + costs[options], state.rows)


def run_head(backbone: GatedBackbone, state: ExecutionState) -> Tensor:
    """Return the logits after the last layer, float32 ``[batch, classes]``."""
    return backbone.head(state.hidden)


def run_to_head(
    backbone: GatedBackbone, state: ExecutionState, choose: Callable[[ExecutionState], Tensor]
) -> Tensor:
    """Return the logits after the layers that are left, at the options that ``choose`` returns."""
    while state.layer < backbone.costs.n_layers:
        state = run_layer(backbone, state, choose(state))
    return run_head(backbone, state)


def advance(
    backbone: GatedBackbone, state: ExecutionState, actions: Tensor, *, reuse: bool = False
) -> tuple[ExecutionState, list[Finished]]:
    """Run the next layer, or take the exit before it, for each sample; run the head at the end.

    At a layer without an exit the exit action means the cheapest option, see ``CostTable``. For
    ``reuse`` see ``run_layer``.

    Returns:
        The state of the remaining samples after the layer, empty if all have left, and the samples
        with an answer: those that took the exit, and after the last layer the remaining ones.
    """
    costs, finished = backbone.costs, []
    if costs.exits:
        leaving = actions == costs.exit_action
        if state.layer not in costs.exits_after:
            actions = actions.masked_fill(leaving, 0)
        elif bool(leaving.any()):
            finished.append(_take_exit(backbone, gather_state(state, leaving.nonzero()[:, 0])))
            remaining = (~leaving).nonzero()[:, 0]
            state, actions = gather_state(state, remaining), actions[remaining]
            if len(remaining) == 0:
                return state._replace(layer=state.layer + 1), finished
            reuse = not torch.is_grad_enabled()  # the state is a copy now
    state = run_layer(backbone, state, actions, reuse=reuse)
    if state.layer == costs.n_layers:
        finished.append(Finished(state, run_head(backbone, state)))
    return state, finished


def _take_exit(backbone: GatedBackbone, state: ExecutionState) -> Finished:
    assert isinstance(backbone, WithExits), "a backbone with exits in its costs has exit heads"
    costs, layer = backbone.costs, state.layer
    state.options[:, layer:] = costs.exit_action
    exit_cost = costs.action_costs(state.spent.device)[layer, costs.exit_action]
    logits = backbone.answer(state.hidden, layer)
    return Finished(state._replace(spent=state.spent + exit_cost), logits)


def _run_groups(
    layer: GatedLayer, bit_options: BitOptions, hidden: Tensor, options: Tensor, *, reuse: bool
) -> Tensor:
    """Run one layer with the samples grouped by option; return its output activation."""
    counts = torch.bincount(options, minlength=len(bit_options)).tolist()
    bits = [b for b, count in zip(bit_options, counts, strict=True) if count]
    if len(bits) == 1:
        return _run_group(layer, hidden, bits[0], reuse=reuse)
    order = torch.argsort(options, stable=True)
    sizes = [count for count in counts if count]
    if torch.is_grad_enabled():
        # Gathering all groups at once and one permutation back make few autograd nodes.
        parts = torch.split(hidden[order], sizes)
        merged = torch.cat([layer(part, b) for part, b in zip(parts, bits, strict=True)])
        return merged[torch.argsort(order)]
    groups = dict(zip(bits, torch.split(order, sizes), strict=True))
    skipped = None if runs_when_skipped(layer) else groups.pop(SKIP, None)
    output: Tensor | None = None
    slab = _slab_size(hidden)
    slabs = [(b, rows) for b, group in groups.items() for rows in torch.split(group, slab)]
    for b, rows in slabs:
        result = layer(gather_rows(hidden, rows), b)
        if output is None:
            same_shape = result.shape[1:] == hidden.shape[1:]
            if same_shape:  # skipped samples stay in place
                output = hidden if reuse else hidden.clone()
            else:
                output = empty_rows(len(hidden), result)
            if skipped is not None and not same_shape:
                scatter_rows(output, skipped, layer(gather_rows(hidden, skipped), SKIP))
        scatter_rows(output, rows, result)
    assert output is not None, "of two groups at least one is not skipped"
    return output


def _run_group(layer: GatedLayer, hidden: Tensor, bits: int, *, reuse: bool) -> Tensor:
    """Run one layer with all samples at the same bits, slab by slab."""
    slab = _slab_size(hidden)
    stays = bits == SKIP and not runs_when_skipped(layer)
    if len(hidden) <= slab or stays or torch.is_grad_enabled():
        return layer(hidden, bits)
    output: Tensor | None = None
    for start in range(0, len(hidden), slab):
        result = layer(hidden[start : start + slab], bits)
        if output is None:
            in_place = reuse and result.shape[1:] == hidden.shape[1:]
            output = hidden if in_place else empty_rows(len(hidden), result)
        output[start : start + slab] = result
    assert output is not None, "a group has samples"
    return output


def _slab_size(hidden: Tensor) -> int:
    """Return how many samples of a batch run at once; all of them except on a CPU."""
    if hidden.device.type != "cpu":
        return len(hidden)
    sample_bytes = math.prod(hidden.shape[1:]) * hidden.element_size()
    return max(_MIN_SLAB, _SLAB_BYTES // max(1, sample_bytes))
