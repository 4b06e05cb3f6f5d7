"""Metrics of predictions and options in percent, paired intervals and the bootstrap."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.errors import ConfigError
from dfs_rl.utils.seeding import torch_generator

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
BOOTSTRAP_DRAWS = 400


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Interval with 95 % confidence."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean difference between two methods on the same images, with its 95 % interval, in points."""

    difference: float
    low: float
    high: float


def accuracy_percent(correct: Tensor) -> float:
    """Return the mean of ``correct``, bool or float ``[n]``, in percent."""
    return 100.0 * correct.double().mean().item()


def accuracy_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error of an accuracy in percent over ``n`` images."""
    share = accuracy / 100.0
    return 100.0 * math.sqrt(share * (1.0 - share) / n)


def class_accuracy(correct: Tensor, labels: Tensor, n_classes: int) -> tuple[float | None, ...]:
    """Return the accuracy of each class in percent, None for a class without images."""
    total = torch.bincount(labels, minlength=n_classes)
    right = torch.bincount(labels, weights=correct.double(), minlength=n_classes)
    pairs = zip(right.tolist(), total.tolist(), strict=True)
    return tuple(100.0 * r / t if t else None for r, t in pairs)


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two methods on the same images.

    The interval is the Laplace-adjusted Wald interval of Bonett and Price (2012): two pseudo-
    images, one in favor of each method, keep the coverage correct when few images differ. For
    binary outcomes it excludes 0 about where McNemar's exact test rejects. The interval covers the
    choice of images, not the training seed.

    Both have the outcome of each image in [0, 1], which may be a mean over draws, ``[n]``.

    Raises:
        ConfigError: If the two do not cover the same number of images.
    """
    if first.shape != second.shape:
        raise ConfigError(
            f"the methods have results of {first.shape[0]} and {second.shape[0]} images; a paired "
            "difference needs the same images."
        )
    change = first.double() - second.double()
    n = change.shape[0] + 2
    mean = change.sum().item() / n
    variance = (change.square().sum().item() + 2.0) / n - mean**2
    margin = Z_95 * math.sqrt(variance / n)
    return PairedDifference(
        difference=100.0 * change.mean().item(),
        low=100.0 * (mean - margin),
        high=100.0 * (mean + margin),
    )


@lru_cache(maxsize=4)
def _bootstrap_weights(n: int) -> Tensor:
    """Return the share of each image in each draw, float32 ``[n, draws]``."""
    generator = torch_generator("bootstrap over images", n)
    drawn = torch.randint(n, (BOOTSTRAP_DRAWS, n), generator=generator)
    counts = torch.zeros(BOOTSTRAP_DRAWS, n).scatter_add_(1, drawn, torch.ones(BOOTSTRAP_DRAWS, n))
    return counts.T / n


def resampled_means(values: Tensor) -> Tensor:
    """Return the mean over images ``[..., n]`` in each bootstrap draw, float32 ``[..., draws]``.

    Calls with the same number of images use the same draws, so differences are paired.
    """
    return values.float() @ _bootstrap_weights(values.shape[-1])


def mean(values: Collection[float]) -> float:
    """Return the mean of values that are added in their order."""
    return sum(values) / len(values)


def interval(draws: Sequence[float]) -> Interval:
    """Return the central 95 % interval of the draws."""
    tail = (1.0 - 0.95) / 2
    ends = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(ends).tolist()
    return Interval(low=low, high=high)
