"""Layer descriptors for agents that choose one bit option per layer for all images.

They follow HAQ (Wang et al., CVPR 2019).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.gating.observation import cost_scale

N_FIXED = 8
N_DESCRIPTORS = N_FIXED + 2
"""Number of descriptors: those of the layer itself, previous action and spent cost."""


@torch.inference_mode()
def layer_descriptors(backbone: WalkableBackbone) -> NDArray[np.float32]:
    """Return descriptors of every gated layer: shapes, computation and weights.

    Shapes come from a forward pass of one empty image, so a network needs to declare nothing. For
    convolutions whose outputs all have the size of the layer's output, as in a residual block, MACs
    divided by output positions are the number of weights.

    Args:
        backbone: The network.

    Returns:
        float32 ``[layers, 8]`` in [0, 1]: index, input channels, output channels, input positions,
        1 minus the share of positions that is left (3/4 for a stride of 2), MACs, weights, and 1
            for
        layers that change the shape. Channels, positions, MACs and weights are relative to the
            layer
        with the largest value.
    """
    costs = backbone.costs
    shapes = _shapes(backbone)
    positions = [prod(shape[1:]) for shape in shapes]
    channels = [shape[0] for shape in shapes]
    described = np.empty((costs.n_layers, N_FIXED))
    described[:, 0] = np.arange(costs.n_layers) / max(1, costs.n_layers - 1)
    described[:, 1] = _relative(channels[:-1])
    described[:, 2] = _relative(channels[1:])
    described[:, 3] = _relative(positions[:-1])
    kept = [after / before for before, after in pairwise(positions)]
    described[:, 4] = np.clip(1.0 - np.array(kept), 0.0, 1.0)
    described[:, 5] = _relative(costs.layer_macs)
    weights = [m / p for m, p in zip(costs.layer_macs, positions[1:], strict=True)]
    described[:, 6] = _relative(weights)
    described[:, 7] = [before != after for before, after in pairwise(shapes)]
    return described.astype(np.float32)


def observe_layer(
    fixed: NDArray[np.float32], layer: int, *, previous: float, spent: float
) -> NDArray[np.float32]:
    """Return the observation before a layer's choice, float32 ``[10]`` in [0, 1].

    Args:
        fixed: Result of ``layer_descriptors``.
        layer: Index of the layer; indices after the last layer give the last one.
        previous: Previous action, in [0, 1]; 0 at the first layer.
        spent: Cost of the options so far, as a fraction of running every gated layer at 32 bit.
    """
    scaled = float(cost_scale(torch.tensor(spent, dtype=torch.float64)))
    row = fixed[min(layer, len(fixed) - 1)]
    return np.append(row, np.array([previous, scaled], dtype=np.float32))


def round_to_option(action: float, n_options: int) -> int:
    """Return the option of a continuous action in [0, 1], with equal intervals as in HAQ."""
    return min(int(action * n_options), n_options - 1)


def _shapes(backbone: WalkableBackbone) -> list[tuple[int, ...]]:
    """Return the activation shapes before each gated layer and after the last, without batch."""
    device = backbone.feature_mean.device
    hidden = backbone.stem(torch.zeros(1, *backbone.image_shape, dtype=torch.uint8, device=device))
    shapes = [tuple(hidden.shape[1:])]
    dearest = backbone.options[backbone.options.full]
    for layer in backbone.layers:
        hidden = layer(hidden, dearest)
        shapes.append(tuple(hidden.shape[1:]))
    return shapes


def _relative(values: Sequence[float]) -> NDArray[np.float64]:
    """Return values relative to the largest."""
    return np.array(values, dtype=np.float64) / max(values)
