"""Confidence halfway through a network: a linear probe of the activation, fitted after training.

A gate learns from few images; a probe, fitted on the train split, condenses the channels into a few
numbers that say how hard an image is.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.quantization.modules import FractionalLinear

GRIDS = (4, 2, 1)
"""Grids of parts over which a probe averages each channel, finest first."""
PROBE_SHARE = 0.0002
"""Bound on the probes' cost, as a share of the gated layers at 32 bit, but for the coarsest grid."""

_PENALTY = 1e-2  # on squared weights of standardised inputs, against overfitting
_LEAST_DEVIATION = 0.02  # of the largest input's
_ITERATIONS = 100


def grid_shape(height: int, width: int, *, grid: int) -> tuple[int, int]:
    """Return the rows and columns of parts into which ``pool_grid`` cuts an activation."""
    return min(grid, height), min(grid, width)


def pool_grid(hidden: Tensor, *, grid: int) -> Tensor:
    """Average an activation over the parts of a grid.

    Args:
        hidden: ``[batch, channels, h, w]``.
        grid: Rows and columns, fewer where the activation is smaller.

    Returns:
        float32 ``[batch, channels, parts]``, see ``grid_shape``.
    """
    height, width = hidden.shape[2:]
    rows, columns = grid_shape(height, width, grid=grid)
    if height % rows == 0 and width % columns == 0:  # the same, three times as fast on a CPU
        parts = functional.avg_pool2d(hidden, (height // rows, width // columns))
    else:
        parts = functional.adaptive_avg_pool2d(hidden, (rows, columns))
    return parts.flatten(2).float()


def describe(parts: Tensor, logits: Tensor) -> Tensor:
    """Return the features of a gate.

    Args:
        parts: Result of ``pool_grid``.
        logits: Logits of the probe, ``[batch, classes]``.

    Returns:
        The probe's confidence and the mean of every channel, float32 ``[batch, 3 + channels]``.
    """
    return torch.cat([confidence(logits), parts.mean(dim=2)], dim=1)


def confidence(logits: Tensor) -> Tensor:
    """Return the confidence of a classifier.

    Args:
        logits: ``[batch, classes]``, at least 2 classes.

    Returns:
        float32 ``[batch, 3]``: the highest probability, its lead over the second, the entropy in
        nats.
    """
    probabilities = logits.softmax(dim=1)
    first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return torch.stack([first, first - second, entropy], dim=1)


def fit_probe(probe: FractionalLinear, features: Tensor, labels: Tensor) -> None:
    """Fit a probe by multinomial logistic regression (Alain and Bengio, 2016), then quantize it.

    Args:
        probe: Changed in place.
        features: Its inputs, not negative, float32 ``[n, in]``.
        labels: int64 ``[n]``, or the probability of each class, float32 ``[n, classes]``.
    """
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    # A nearly constant channel would get weights too large for the quantizer of the others.
    deviation = deviation.clamp(min=_LEAST_DEVIATION * float(deviation.max()))
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    standardised = (features - mean) / deviation
    classes = probe.weight.shape[0]
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = functional.linear(standardised, weight, bias)
        value = functional.cross_entropy(logits, labels) + _PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    assert probe.bias is not None, "every probe has one"
    with torch.no_grad():
        folded = weight / deviation
        probe.weight.copy_(folded)
        probe.bias.copy_(bias - folded @ mean)
        probe.quantizers.calibrate(features, probe.weight)
