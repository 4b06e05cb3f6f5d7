"""Execution of the gated layers on a batch, one layer and one choice of options at a time."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedLayer, WalkableBackbone, runs_when_skipped
from dfs_rl.costs import SKIP, BitOptions, CostTable
from dfs_rl.gating.batch_indexing import empty_rows, gather_rows, scatter_rows


class ExecutionState(NamedTuple):
    """State of a batch whose samples are all at the same layer.

    Attributes:
        hidden: Input activation of layer ``layer``, ``[batch, channels, height, width]`` (or the
            shape that the backbone uses).
        layer: Index of the next gated layer; equal to the number of layers at the end.
        options: Options chosen so far, int64 ``[batch, layers]``; 0 for layers not yet reached.
        spent: Cost of the gated layers so far as a fraction of running all of them at 32 bit,
            float64 ``[batch]``.
        rows: Index of each sample in the batch that entered the stem, int64 ``[batch]``; ``None``
            for all of them, in order.
    """

    hidden: Tensor
    layer: int
    options: Tensor
    spent: Tensor
    rows: Tensor | None = None


def gather_state(state: ExecutionState, samples: Tensor) -> ExecutionState:
    """Return copies of some samples of a state, int64 ``samples``; a sample may occur twice."""
    return ExecutionState(
        hidden=gather_rows(state.hidden, samples),
        layer=state.layer,
        options=state.options[samples],
        spent=state.spent[samples],
        rows=samples if state.rows is None else state.rows[samples],
    )


@lru_cache(maxsize=64)
def option_costs(costs: CostTable, device: torch.device) -> Tensor:
    """Return the cached ``costs.option_costs()``, float64 ``[layers, options]``; read-only."""
    with torch.inference_mode(mode=False):
        return costs.option_costs().to(device)


@lru_cache(maxsize=64)
def action_costs(costs: CostTable, device: torch.device) -> Tensor:
    """Return the cached ``costs.action_costs()``, float64 ``[layers, actions]``; read-only."""
    with torch.inference_mode(mode=False):
        return costs.action_costs().to(device)


@lru_cache(maxsize=64)
def least_costs(costs: CostTable, device: torch.device) -> Tensor:
    """Return the cached ``costs.least_costs()``, float64 ``[layers + 1]``; read-only."""
    with torch.inference_mode(mode=False):
        return costs.least_costs().to(device)


def run_stem(backbone: WalkableBackbone, images: Tensor) -> ExecutionState:
    """Run the stem on images, uint8 ``[batch, c, h, w]`` or float in [0, 1].

    Returns:
        The state before the first gated layer. It shares no memory with ``images``.
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
    backbone: WalkableBackbone, state: ExecutionState, options: Tensor, *, reuse: bool = False
) -> ExecutionState:
    """Run the next layer, every sample at its own option.

    Samples are grouped by option and each group runs once. Skipped samples cost nothing: they stay
    in place, or pass only the shortcut if the layer changes the shape. A layer with a part that
    also runs when it is skipped runs that part.

    Args:
        backbone: The network.
        state: State of the batch; at least one layer must be left.
        options: Option indices, int64 ``[batch]``, on the device of the activations.
        reuse: Overwrite ``state.hidden`` if the shape allows it, which saves a copy; every earlier
            state of this rollout is then invalid. Not allowed while gradients are recorded.

    Returns:
        The state after the layer.
    """
    layer = state.layer
    costs = option_costs(backbone.costs, options.device)[layer]
    chosen = state.options if reuse else state.options.clone()
    chosen[:, layer] = options
    hidden = _run_groups(
        backbone.layers[layer], backbone.options, state.hidden, options, reuse=reuse
    )
    return ExecutionState(hidden, layer + 1, chosen, state.spent + costs[options], state.rows)


def run_head(backbone: WalkableBackbone, state: ExecutionState) -> Tensor:
    """Return the logits after the last layer, float32 ``[batch, classes]``."""
    return backbone.head(state.hidden)


def _run_groups(
    layer: GatedLayer, bit_options: BitOptions, hidden: Tensor, options: Tensor, *, reuse: bool
) -> Tensor:
    """Run one layer with the samples grouped by option; return its output activation."""
    counts = torch.bincount(options, minlength=len(bit_options)).tolist()
    bits = [b for b, count in zip(bit_options, counts, strict=True) if count]
    if len(bits) == 1:
        return layer(hidden, bits[0])
    order = torch.argsort(options, stable=True)
    sizes = [count for count in counts if count]
    if torch.is_grad_enabled():
        return _run_sorted(layer, bits, hidden, order, sizes)
    return _run_scattered(layer, bits, hidden, list(torch.split(order, sizes)), reuse=reuse)


def _run_sorted(
    layer: GatedLayer, bits: list[int], hidden: Tensor, order: Tensor, sizes: list[int]
) -> Tensor:
    """Gather all groups at once and restore the order by one permutation: few autograd nodes."""
    parts = torch.split(hidden[order], sizes)
    merged = torch.cat([layer(part, b) for part, b in zip(parts, bits, strict=True)])
    return merged[torch.argsort(order)]


def _run_scattered(
    layer: GatedLayer, bits: list[int], hidden: Tensor, groups: list[Tensor], *, reuse: bool
) -> Tensor:
    """Gather, run and write back each group; skipped samples stay if the layer keeps the shape."""
    skipped = groups[0] if bits[0] == SKIP and not runs_when_skipped(layer) else None
    first = 0 if skipped is None else 1
    output: Tensor | None = None
    for rows, b in zip(groups[first:], bits[first:], strict=True):
        result = layer(gather_rows(hidden, rows), b)
        if output is None:
            same_shape = result.shape[1:] == hidden.shape[1:]
            if same_shape:
                output = hidden if reuse else hidden.clone()
            else:
                output = empty_rows(len(hidden), result)
            if skipped is not None and not same_shape:
                scatter_rows(output, skipped, layer(gather_rows(hidden, skipped), SKIP))
        scatter_rows(output, rows, result)
    assert output is not None, "of two groups at least one is not skipped"
    return output
