"""A data set small enough to train on within a test: bright and dark halves."""

import pytest
import torch

from dfs_rl.data import Dataset, ImageSet


def _split(n: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 120, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    return ImageSet(images, labels)


@pytest.fixture
def halves() -> Dataset:
    return Dataset(
        name="halves",
        class_names=("top", "bottom"),
        train=_split(96, 0),
        agent=_split(32, 1),
        val=_split(64, 2),
        test=_split(32, 3),
        flip=True,
    )
