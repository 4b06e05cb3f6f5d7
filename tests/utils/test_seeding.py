import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.utils.seeding import numpy_generator, seed_everything, stream_seed, torch_generator

keys = st.lists(st.integers() | st.text(), min_size=1, max_size=4)


@given(keys)
def test_the_same_keys_give_the_same_stream(names):
    first = torch.rand(3, generator=torch_generator(*names))
    assert torch.equal(first, torch.rand(3, generator=torch_generator(*names)))
    assert np.array_equal(numpy_generator(*names).random(3), numpy_generator(*names).random(3))


@given(keys, keys)
def test_different_keys_give_different_streams(one, other):
    same = [(type(k), k) for k in one] == [(type(k), k) for k in other]
    assert (stream_seed(*one) == stream_seed(*other)) == same


def test_keys_that_look_alike_are_different():
    seeds = {
        stream_seed(*names)
        for names in [(1,), ("1",), ("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), (1, 1)]
    }
    assert len(seeds) == 7


def test_streams_are_stable_across_processes():
    # Literal values: a change here breaks the resuming of every run that exists.
    assert stream_seed(0, "augment", 3) == 591_071_308_139_140_447
    assert stream_seed("a") == 3_334_001_295_083_286_392


def test_neighbouring_epochs_are_uncorrelated():
    draws = torch.stack([torch.rand(2000, generator=torch_generator(0, e)) for e in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 0.1  # 4.5 standard deviations of independent draws


def test_seed_everything_seeds_python_numpy_and_torch():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - the global one is meant

    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
