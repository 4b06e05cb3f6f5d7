"""Paired bootstrap over test images (Efron, 1979)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dfs_rl.evaluation.comparison_records import Interval
from dfs_rl.utils.seeding import torch_generator

DRAWS = 400
_LEVEL = 0.95


@lru_cache(maxsize=4)
def _weights(n: int) -> Tensor:
    """Return the bootstrap weights of ``n`` images, identical for all methods.

    Returns:
        Count of each image in each draw, divided by ``n``, float32 ``[n, draws]``.
    """
    generator = torch_generator("bootstrap over images", n)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    counts = torch.zeros(DRAWS, n).scatter_add_(1, drawn, torch.ones(DRAWS, n))
    return counts.T / n


def resampled_means(values: Tensor) -> Tensor:
    """Return the mean over images in each bootstrap draw.

    Calls with the same number of images use the same draws, so differences between methods are
    paired.

    Args:
        values: Value of each image, ``[..., n]``.

    Returns:
        Mean in each draw, float32 ``[..., draws]``.
    """
    return values.float() @ _weights(values.shape[-1])


def interval(draws: Sequence[float]) -> Interval:
    """Return the central 95 % interval of the draws."""
    tail = (1.0 - _LEVEL) / 2
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(
        torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    )
    return Interval(low=float(low), high=float(high))
