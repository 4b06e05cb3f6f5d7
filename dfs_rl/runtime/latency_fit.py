"""Fit of the time of each option from the times of whole runs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TOLERANCE = 1e-4
"""Change of an option's time, as a fraction of a run's, at which the fit ends."""
_MAX_STEPS = 200


class CostFit(NamedTuple):
    """Times of options that add up to the times of whole runs.

    Attributes:
        base: Time of a run with the first option at every layer.
        extra: What each option takes more than the first one, ``[layers, options]``.
        residuals: Time of each run less the sum of its parts, ``[runs]``.
    """

    base: float
    extra: Floats
    residuals: Floats


def fit_costs(options: NDArray[np.int64], times: Floats, n_options: int) -> CostFit:
    """Fit times of options to whole runs by median polish (Tukey, 1977), which ignores outliers.

    Runs weigh by the inverse of their time, so that cheap settings are as exact as others.

    Args:
        options: Option of each layer in each run, ``[runs, layers]``; every option occurs at every
            layer.
        times: Time of each run, positive, ``[runs]``.
        n_options: Number of options.
    """
    n_layers = options.shape[1]
    chosen = [[options[:, i] == o for o in range(n_options)] for i in range(n_layers)]
    weights = 1.0 / times
    base = float(np.median(times))
    effects = np.zeros((n_layers, n_options))
    residuals = times - base
    for _ in range(_MAX_STEPS):
        change = 0.0
        for layer, runs_of_options in enumerate(chosen):
            for option, runs in enumerate(runs_of_options):
                step = weighted_median(residuals[runs], weights[runs])
                effects[layer, option] += step
                residuals[runs] -= step
                change = max(change, abs(step))
        if change < _TOLERANCE * abs(base):
            break
    first = effects[:, :1]
    return CostFit(base + float(first.sum()), effects - first, residuals)


def weighted_median(values: Floats, weights: Floats) -> float:
    """Return the least value below or at which half of the weight lies."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def split_time(total: float, alone: Floats) -> Floats:
    """Return the shares of parts in the time of a run, which add up to ``total``.

    Each part has its time alone and an equal share of the rest, which is the work around the parts.
    """
    around = max(total - float(alone.sum()), 0.0) / len(alone)
    shares = alone + around
    return shares * (total / float(shares.sum()))
