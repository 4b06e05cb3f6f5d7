"""How figures would vary with other test images: the bootstrap (Efron, 1979), paired between methods."""

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
    """Return how often each of ``n`` images is in each draw, over ``n``, float32 ``[n, draws]``; the same for everybody."""
    generator = torch_generator("bootstrap over images", n)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    counts = torch.zeros(DRAWS, n).scatter_add_(1, drawn, torch.ones(DRAWS, n))
    return counts.T / n


def resampled_means(values: Tensor) -> Tensor:
    """Return the mean over images in each draw.

    All calls with as many images use the same draws, so differences between methods are paired.

    Args:
        values: ``[..., n]``.

    Returns:
        float32 ``[..., draws]``.
    """
    return values.float() @ _weights(values.shape[-1])


def interval(draws: Sequence[float]) -> Interval:
    """Return where the middle 95 % of the draws lie."""
    tail = (1.0 - _LEVEL) / 2
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(
        torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    )
    return Interval(low=float(low), high=float(high))
