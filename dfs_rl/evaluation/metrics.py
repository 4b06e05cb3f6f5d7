"""Pure metrics over predictions and chosen options; accuracies and differences are in percent."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.errors import ConfigError

# Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054


class PairedDifference(NamedTuple):
    """Mean difference between two methods on the same images, in points.

    Attributes:
        difference: Mean difference.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
    """

    difference: float
    low: float
    high: float


def accuracy_percent(correct: Tensor) -> float:
    """Return the mean of ``correct``, bool or float ``[n]``, in percent."""
    return 100.0 * correct.double().mean().item()


def accuracy_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error of an accuracy.

    Args:
        accuracy: Accuracy in percent.
        n: Number of images.

    Returns:
        Standard error in percentage points.
    """
    share = accuracy / 100.0
    return 100.0 * math.sqrt(share * (1.0 - share) / n)


def class_accuracy(correct: Tensor, labels: Tensor, n_classes: int) -> tuple[float | None, ...]:
    """Return the accuracy of each class in percent, None for a class without images.

    Args:
        correct: Correctness of each prediction, bool or float ``[n]``.
        labels: True classes, int64 ``[n]``, each below ``n_classes``.
        n_classes: Number of classes.
    """
    total = torch.bincount(labels, minlength=n_classes)
    right = torch.bincount(labels, weights=correct.double(), minlength=n_classes)
    pairs = zip(right.tolist(), total.tolist(), strict=True)
    return tuple(100.0 * r / t if t else None for r, t in pairs)


def distinct_patterns(options: Tensor) -> int:
    """Return the number of distinct rows of ``options`` ``[n, layers]``."""
    return int(torch.unique(options, dim=0).shape[0])


def option_histogram(options: Tensor, n_options: int) -> Tensor:
    """Return the share of images that run each layer at each option.

    Args:
        options: Option indices, int64 ``[n, layers]``.
        n_options: Number of options.

    Returns:
        Shares, float64 ``[layers, options]``; each row sums to 1.
    """
    layers = options.shape[1]
    flat = options + n_options * torch.arange(layers)  # [n, layers], one bin per pair
    counts = torch.bincount(flat.flatten(), minlength=layers * n_options)
    return counts.view(layers, n_options).double() / options.shape[0]


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two methods on the same images.

    The interval is the Laplace-adjusted Wald interval of Bonett and Price (2012): two pseudo-
    images, one in favor of each method, keep the coverage correct when few images differ. For
    binary outcomes it excludes 0 about where McNemar's exact test rejects. Outcomes between 0 and 1
    (means over draws) are valid too. The interval covers the choice of images, not the training
    seed.

    Args:
        first: Outcome of each image in [0, 1], ``[n]``.
        second: Outcome of the same images under the other method, ``[n]``.

    Returns:
        Mean of ``first - second`` in points and its 95 % interval.

    Raises:
        ConfigError: If the two do not cover the same number of images.
    """
    if first.shape != second.shape:
        raise ConfigError(
            f"cannot pair {first.shape[0]} images with {second.shape[0]}; both methods must run on "
            "the same images."
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
