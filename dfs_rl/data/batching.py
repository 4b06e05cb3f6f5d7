"""Batches: shuffled indices for training and ordered slices for evaluation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.utils.seeding import numpy_generator


def epoch_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yield the shuffled indices of one epoch, a function of ``(seed, epoch)`` alone.

    Yields:
        Indices, int64 ``[batch_size]`` on the CPU, each at most once; the remainder is left out.

    Raises:
        ConfigError: If ``batch_size`` is not positive or larger than ``n``.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be 1 or more.")
    if n < batch_size:
        raise ConfigError(
            f"batch size {batch_size} exceeds the {n} images, and incomplete batches are left out; "
            f"use {n} or less."
        )
    order = torch.from_numpy(numpy_generator("epoch_batches", seed, epoch).permutation(n))
    yield from torch.split(order[: n - n % batch_size], batch_size)


def batches(image_set: ImageSet, batch_size: int) -> Iterator[ImageSet]:
    """Yield views of ``batch_size`` images in order; the last batch may be smaller."""
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be 1 or more.")
    for start in range(0, len(image_set), batch_size):
        yield ImageSet(
            image_set.images[start : start + batch_size],
            image_set.labels[start : start + batch_size],
        )
