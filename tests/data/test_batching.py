import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.data import ImageSet, batches, epoch_batches
from dfs_rl.errors import ConfigError


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 9))
def test_an_epoch_visits_each_image_once(n, size, seed):
    if n < size:
        return
    parts = list(epoch_batches(n, size, seed=seed, epoch=3))
    visited = torch.cat(parts)
    assert visited.dtype == torch.int64
    assert len(visited) == n // size * size
    assert len(visited.unique()) == len(visited)
    assert {len(part) for part in parts} == {size}
    assert set(visited.tolist()) <= set(range(n))


def epoch(seed: int, number: int) -> list[int]:
    return torch.cat(list(epoch_batches(100, 5, seed=seed, epoch=number))).tolist()


def test_order_depends_on_seed_and_epoch_alone():
    first = epoch(1, 2)
    torch.rand(3)  # the global generator plays no part
    assert epoch(1, 2) == first
    assert len({tuple(epoch(*key)) for key in [(1, 2), (1, 3), (2, 2), (2, 1)]}) == 4


@pytest.mark.parametrize(("n", "size", "message"), [(5, 0, "1 or more"), (5, 6, "exceeds the 5")])
def test_impossible_epoch_batches_are_refused(n, size, message):
    with pytest.raises(ConfigError, match=message):
        next(epoch_batches(n, size, seed=0, epoch=0))


def test_ordered_batches_are_views_in_order():
    images = torch.arange(10 * 16).to(torch.uint8).view(10, 1, 4, 4)
    image_set = ImageSet(images, torch.arange(10))
    parts = list(batches(image_set, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), images)
    assert torch.cat([part.labels for part in parts]).tolist() == list(range(10))
    assert parts[1].images.data_ptr() == images[4].data_ptr()


def test_empty_batches_are_refused():
    image_set = ImageSet(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1).long())
    with pytest.raises(ConfigError, match="batch size is 0"):
        next(batches(image_set, 0))
