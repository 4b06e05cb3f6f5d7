"""Small data set of images with a bright half, trainers on it, and a second process."""

import multiprocessing
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch
from torch import distributed

from dfs_rl.backbones import Backbone
from dfs_rl.backbones.registry import FAMILIES
from dfs_rl.data import Dataset, ImageSet, channel_statistics
from dfs_rl.training.supernet import StepLosses, SupernetTrainer
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.constants import Recipe


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


def trainer_of(
    kind: type[Backbone],
    data: Dataset,
    *,
    epochs: int,
    recipe: Recipe = "supernet",
    trainer: type[SupernetTrainer] = SupernetTrainer,
    training: dict[str, object] | None = None,
    **shape: object,
) -> SupernetTrainer:
    """Return the trainer of a small network, with fixed random weights."""
    shape = {"in_channels": 1, "n_classes": 2, "image_size": (8, 8), **shape}
    settings = {"batch_size": 16, "pad": 0, "precision": "float32", **(training or {})}
    torch.manual_seed(0)
    return trainer(
        kind(FAMILIES[kind.family][0](**shape), channel_statistics(data.train.images)),  # type: ignore[call-arg, arg-type]
        data,
        SupernetConfig(**settings),  # type: ignore[arg-type]
        epochs=epochs,
        seed=1,
        device=torch.device("cpu"),
        recipe=recipe,
    )


def train_all(trainer: SupernetTrainer, *, steps: int | None = None) -> list[StepLosses]:
    """Train to the end, or up to a number of steps, and return the losses of all steps."""
    losses: list[StepLosses] = []
    while trainer.epoch < trainer.epochs:
        for loss in trainer.train_epoch():
            losses.append(loss)
            if len(losses) == steps:
                return losses
    return losses


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


@pytest.fixture(scope="session")  # a process can join one group only
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
