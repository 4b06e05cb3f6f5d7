"""Linear classifiers of activations, fitted after training: probes and heads of early exits.

A gate learns from few images; a probe, fitted on the train split, condenses the channels into a few
numbers that say how hard an image is. At an exit, which is behind a gated layer, a head on a finer
grid classifies the image, so that it can leave the network.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.interfaces import CONFIDENCE_SIZE
from dfs_rl.quantization.modules import FractionalLinear

GRIDS = (4, 2, 1)
"""Grids of parts over which a probe averages each channel, finest first."""
PROBE_SHARE = 0.0002
"""Bound on the probes' cost, a share of the gated layers at 32 bit; the coarsest grid is exempt."""
EXIT_GRID = max(GRIDS)
"""Rows and columns into which a head cuts an activation at most."""

_PENALTY = 1e-2  # on squared weights of standardised inputs, against overfitting
_LEAST_DEVIATION = 0.02  # of the largest input's
_ITERATIONS = 100


def pool_grid(hidden: Tensor, *, grid: int) -> Tensor:
    """Average ``[batch, channels, h, w]`` over the parts of a grid of rows and columns.

    The result is float32 ``[batch, channels, parts]``; fewer parts where the activation is smaller.
    """
    kernel = equal_parts(hidden, grid=grid)
    if kernel is not None:  # the same, faster on a CPU
        parts = functional.avg_pool2d(hidden, kernel)
    else:
        height, width = hidden.shape[2:]
        parts = functional.adaptive_avg_pool2d(hidden, (min(grid, height), min(grid, width)))
    return parts.flatten(2).float()


def equal_parts(hidden: Tensor, *, grid: int) -> tuple[int, int] | None:
    """Return height and width of the parts of a grid, ``None`` if they are not of one size."""
    height, width = hidden.shape[2:]
    rows, columns = min(grid, height), min(grid, width)
    if height % rows or width % columns:
        return None
    return height // rows, width // columns


def describe(parts: Tensor, logits: Tensor) -> Tensor:
    """Return a probe's confidence and the mean of every channel, float32 ``[batch, 3 + channels]``.

    They are the features of a gate, from the result of ``pool_grid`` and the probe's logits.
    """
    return torch.cat([confidence(logits), parts.mean(dim=2)], dim=1)


def confidence(logits: Tensor) -> Tensor:
    """Return the confidence of a classifier from its logits ``[batch, classes]``.

    It is float32 ``[batch, 3]``: the highest probability, its lead over the second, the entropy in
    nats.
    """
    probabilities = logits.softmax(dim=1)
    top = probabilities.topk(2, dim=1).values  # [batch, 2]
    entropy = torch.special.entr(probabilities).sum(dim=1, keepdim=True)
    return torch.cat([top[:, :1], top[:, :1] - top[:, 1:], entropy], dim=1)


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


class ExitHeads(nn.Module):
    """The heads of a backbone's exits, from pooled activations to logits.

    Args:
        after: The gated layer before which each exit is.
        heads: One for each.

    Attributes:
        confidence_mean: Mean of ``confidence`` of each head, float32 ``[heads, 3]``.
        confidence_std: Its standard deviation, likewise.
    """

    confidence_mean: Tensor
    confidence_std: Tensor

    def __init__(self, after: Sequence[int], heads: nn.ModuleList) -> None:
        super().__init__()
        self.after = tuple(after)
        self.heads = heads
        shape = (len(self.after), CONFIDENCE_SIZE)
        self.register_buffer("confidence_mean", torch.zeros(shape))
        self.register_buffer("confidence_std", torch.ones(shape))

    def __contains__(self, layer: int) -> bool:
        """Return whether there is a head before gated layer ``layer``."""
        return layer in self.after

    def answer(self, parts: Tensor, layer: int) -> Tensor:
        """Return logits from an activation, pooled on ``EXIT_GRID``, before a gated layer."""
        return cast("Tensor", self.heads[self.after.index(layer)](parts.flatten(1)))

    def sureness(self, logits: Tensor, layer: int) -> Tensor:
        """Return the confidence of logits in standard deviations from its mean, ``[batch, 3]``."""
        i = self.after.index(layer)
        return (confidence(logits) - self.confidence_mean[i]) / self.confidence_std[i]
