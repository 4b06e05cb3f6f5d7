"""Small data set of images with a bright half, and a second process for distributed tests."""

import multiprocessing
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch
from torch import distributed

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


def _join(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )


def _serve(store: str, connection) -> None:
    _join(store, rank=1)
    while (task := connection.recv()) is not None:
        function, arguments = task
        connection.send(function(*arguments))
    distributed.destroy_process_group()


@pytest.fixture(scope="package")
def together(tmp_path_factory) -> Iterator[Callable]:
    """Return a function that calls another in both processes and returns both results."""
    store = str(tmp_path_factory.mktemp("group") / "store")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(store, theirs), daemon=True)
    process.start()
    _join(store, rank=0)

    def call(function: Callable, *arguments: object) -> tuple:
        ours.send((function, arguments))
        mine = function(*arguments)
        assert ours.poll(60)
        return mine, ours.recv()

    yield call
    ours.send(None)
    distributed.destroy_process_group()
    process.join(60)
