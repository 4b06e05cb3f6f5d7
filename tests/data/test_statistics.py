import math

import numpy as np
import pytest
import torch

from dfs_rl.data import ChannelStatistics, channel_statistics
from dfs_rl.errors import DataError


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_equal_to_numpy_over_several_chunks(channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1500, channels, 5, 4), dtype=torch.uint8, generator=generator)
    scaled = images.numpy().astype(np.float64) / 255
    measured = channel_statistics(images)
    assert measured.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert measured.std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_a_constant_channel_can_be_divided_by_its_std():
    images = torch.full((3, 2, 4, 4), 255, dtype=torch.uint8)
    images[:, 1] = 51
    assert channel_statistics(images) == ChannelStatistics((1.0, 0.2), (1.0, 1.0))


def test_no_images_have_no_statistics():
    with pytest.raises(DataError, match="at least one image"):
        channel_statistics(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((), ()),
        ((0.5,), (0.1, 0.1)),
        ((math.nan,), (0.1,)),
        ((0.5,), (0.0,)),
        ((0.5,), (math.inf,)),
    ],
)
def test_statistics_that_cannot_normalise_are_refused(mean, std):
    with pytest.raises(DataError, match="one positive std per channel"):
        ChannelStatistics(mean, std)
