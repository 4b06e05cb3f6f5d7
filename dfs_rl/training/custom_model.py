"""A user's own network, named by its constructor, as the backbone of a command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_rl.errors import DataError
from dfs_rl.utils.logging import say

if TYPE_CHECKING:
    from dfs_rl.backbones import Backbone, StoredBackbone
    from dfs_rl.data import Dataset

_EXAMPLES = 64
_CALIBRATION_IMAGES = 20_000
_LEARNED = 0.1
"""Of the way from guessing to no error, what a network has come that was trained; 40 with random weights came to 0.05 at most."""


def construct_for(
    name: str,
    dataset: "Dataset",
    *,
    weights: Path | None = None,
    bits: Sequence[int] | None = None,
    stem_bits: int = 32,
    per_channel: bool = True,
) -> "Backbone":
    """Make a user's network for a data set, neither calibrated nor trained.

    A network gets images normalised by the mean and deviation of the train split; a constructor that returns a backbone chooses that,
    and the menu, itself.

    Args:
        name: ``module:function``.
        dataset: What it is for.
        weights: Weights to load into it.
        bits: The menu.
        stem_bits: Precision of what no gate decides about.
        per_channel: One weight step per output channel instead of one per layer.

    Raises:
        DataError: If it does not fit the data set.
        ConfigError: If it cannot be made, or gated.
    """
    import torch

    from dfs_rl.backbones.conversion.convert import construct
    from dfs_rl.costs import DEFAULT_BITS
    from dfs_rl.data import channel_statistics

    statistics = channel_statistics(dataset.train.images)
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (statistics.mean, statistics.std))
    examples = (dataset.train.images[:_EXAMPLES].float() / 255 - mean) / std
    backbone = construct(
        name,
        examples,
        statistics,
        bits=DEFAULT_BITS if bits is None else bits,
        stem_bits=stem_bits,
        per_channel=per_channel,
        weights=weights,
    )
    if backbone.n_classes != dataset.n_classes or backbone.image_shape != dataset.image_shape:
        raise DataError(
            f"the network of {name} takes images of {list(backbone.image_shape)} and tells {backbone.n_classes} classes apart, but data "
            f"set {dataset.name!r} has {list(dataset.image_shape)} and {dataset.n_classes}."
        )
    return backbone


def calibrated(
    name: str, dataset: "Dataset", *, weights: Path | None = None, device: str = "cpu"
) -> "StoredBackbone":
    """Make a user's pretrained network fit for gating without training it: calibrated on the train split, which needs no labels.

    Args:
        name: ``module:function``.
        dataset: Its val split measures what uniform settings get right.
        weights: Weights to load into it.
        device: Where to compute.

    Raises:
        DataError: If it does not fit the data set.
        ConfigError: If it cannot be made, or gated.
    """
    import torch

    from dfs_rl.backbones import BackboneInfo, StoredBackbone
    from dfs_rl.training.ptq import calibrate
    from dfs_rl.training.supernet import uniform_accuracies
    from dfs_rl.utils.seeding import stream_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            stream_seed(0, "weights")
        )  # what a constructor draws is the same every time
        backbone = construct_for(name, dataset, weights=weights).to(device)
    say(
        f"Calibrating the network of {name} on images of the train split; its weights stay as they are."
    )
    calibrate(backbone, dataset.train.images[:_CALIBRATION_IMAGES].to(device))
    accuracy = uniform_accuracies(backbone, dataset.val.to(device))
    shown = ", ".join(f"{bits} bit {value:.1f} %" for bits, value in accuracy.items())
    say(f"Calibrated; val accuracy {shown}.")
    guessing = 100 * float(dataset.val.labels.bincount().max()) / len(dataset.val)
    if max(accuracy.values()) < guessing + _LEARNED * (100 - guessing):
        say(
            f"Warning: the network of {name} gets little more right than who always says the same, {guessing:.1f} %, so it seems to be "
            "untrained; give its weights, or load them in the constructor."
        )
    info = BackboneInfo(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        accuracy=accuracy,
        image_size=dataset.image_size,
        flip=dataset.flip,
    )
    return StoredBackbone(backbone=backbone.cpu(), info=info)
