"""Backbone from a user's network, made by a constructor ``module:function``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from dfs_rl.backbones import Backbone, BackboneInfo, Fractionalized, StoredBackbone, fractionalize
from dfs_rl.backbones.conversion.convert import load_weights, made_by
from dfs_rl.costs import DEFAULT_BITS
from dfs_rl.data import Dataset, channel_statistics
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.training.ptq import calibrate
from dfs_rl.training.supernet import uniform_accuracies
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.seeding import stream_seed

_EXAMPLES = 64
_CALIBRATION_IMAGES = 20_000
_MIN_LEARNED_SHARE = 0.1
"""Minimum accuracy of a trained network, as a share of the range from guessing to 100 %."""


def build_custom_backbone(
    name: str,
    dataset: Dataset,
    *,
    weights: Path | None = None,
    bits: Sequence[int] | None = None,
    stem_bits: int = 32,
    per_channel: bool = True,
) -> Backbone:
    """Build the network of a constructor for a data set, neither calibrated nor trained.

    A model gets images normalised by the statistics of the train split; a constructor that returns
    a backbone chooses normalisation and bit options itself. What is never gated runs at
    ``stem_bits``, and weight scales are ``per_channel`` or per layer.

    Raises:
        DataError: If the network does not fit the data set.
        ConfigError: If the network cannot be built, or gated.
        CheckpointError: If the weights cannot be read or do not fit.
    """
    backbone = made_by(name)
    if not isinstance(backbone, Backbone):
        if weights is not None:
            load_weights(backbone, weights)
        mean, std = dataclasses.astuple(channel_statistics(dataset.train.images))
        shift, scale = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
        backbone = fractionalize(
            backbone,
            (dataset.train.images[:_EXAMPLES].float() / 255 - shift) / scale,
            DEFAULT_BITS if bits is None else bits,
            stem_bits=stem_bits,
            per_channel=per_channel,
            mean=mean,
            std=std,
            constructor=name,
        )
    elif weights is not None:
        raise ConfigError(
            f"weights is {weights}, but {name} returns a backbone; let it load them into the model "
            "that it makes one of."
        )
    elif isinstance(backbone, Fractionalized):
        backbone.config = dataclasses.replace(backbone.config, constructor=name)
    if backbone.n_classes != dataset.n_classes or backbone.image_shape != dataset.image_shape:
        raise DataError(
            f"the network of {name} takes images of {list(backbone.image_shape)} and has "
            f"{backbone.n_classes} classes, but data set {dataset.name!r} has "
            f"{list(dataset.image_shape)} and {dataset.n_classes}."
        )
    return backbone


def build_pretrained_backbone(name: str, dataset: Dataset, weights: Path | None = None) -> Backbone:
    """Build a user's network with its default bits, reproducibly, and not calibrated yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, "weights"))
        return build_custom_backbone(name, dataset, weights=weights)


def calibrate_custom_backbone(
    backbone: Backbone, dataset: Dataset, *, name: str, device: torch.device
) -> StoredBackbone:
    """Calibrate a user's pretrained network on the train split, without labels.

    The val split measures the accuracy of uniform bits.
    """
    print_status(
        f"Calibrating the network of {name} on images of the train split; its weights stay fixed."
    )
    calibrate(backbone.to(device), dataset.train.images[:_CALIBRATION_IMAGES].to(device))
    accuracy = uniform_accuracies(backbone, dataset.val.to(device))
    shown = ", ".join(f"{bits} bit {value:.1f} %" for bits, value in accuracy.items())
    print_status(f"Calibrated; val accuracy {shown}.")
    guessing = 100 * float(dataset.val.labels.bincount().max()) / len(dataset.val)
    if max(accuracy.values()) < guessing + _MIN_LEARNED_SHARE * (100 - guessing):
        print_status(
            f"Warning: the accuracy of the network of {name} is close to that of the most frequent "
            f"class, {guessing:.1f} %, so it seems to be untrained; give its weights, or load them "
            "in the constructor."
        )
    return StoredBackbone(backbone=backbone.cpu(), info=BackboneInfo.of(dataset, accuracy))


def build_calibrated_backbone(
    name: str, dataset: Dataset, *, weights: Path | None = None, device: str = "cpu"
) -> StoredBackbone:
    """Build a user's pretrained network and calibrate it; see the two functions above."""
    backbone = build_pretrained_backbone(name, dataset, weights)
    return calibrate_custom_backbone(backbone, dataset, name=name, device=torch.device(device))
