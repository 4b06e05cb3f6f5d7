"""How sure a network is halfway: a linear probe on pooled channels, fitted once the network is trained."""

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.quant.layers import FractionalLinear

_PENALTY = (
    1e-4  # on squared weights of standardised channels; enough to keep separable classes finite
)
_ITERATIONS = 100


def confidence(logits: Tensor) -> Tensor:
    """Describe how sure a classifier is, whatever its classes.

    Args:
        logits: ``[batch, classes]``, at least 2 classes.

    Returns:
        The highest probability, its lead over the second and the entropy in nats, float32 ``[batch, 3]``.
    """
    probabilities = logits.softmax(dim=1)
    first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return torch.stack([first, first - second, entropy], dim=1)


def fit_probe(probe: FractionalLinear, features: Tensor, labels: Tensor) -> None:
    """Fit a probe by multinomial logistic regression (Alain and Bengio, 2016), then set its quantizer steps.

    Args:
        probe: Changed in place.
        features: What it classifies, not negative, float32 ``[n, in]``.
        labels: int64 ``[n]``.
    """
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
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
    with torch.no_grad():
        folded = weight / deviation
        probe.weight.copy_(folded)
        probe.bias.copy_(bias - folded @ mean)
        probe.quantizers.calibrate(features, probe.weight)
