"""A backbone on disk: structure and provenance in JSON, weights in safetensors.

Loading executes no code of the folder. A user's own network is made again by its constructor, which
the user must have allowed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.registry import FAMILIES
from dfs_rl.costs import COMPUTATION
from dfs_rl.costs.latency_profile import LatencyProfile
from dfs_rl.data import ChannelStatistics, Dataset
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.utils.checkpoint import (
    check_finite,
    load_tensors,
    read_manifest,
    save_tensors,
    shared_names,
    write_manifest,
)
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.run_folder import check_trained
from dfs_rl.utils.trusted_import import trusting

T = TypeVar("T")

FORMAT = 3
STRUCTURE_FILE = "backbone.json"
WEIGHTS_FILE = "backbone.safetensors"
EXITS_FILE = "exits.safetensors"
"""The heads of the exits, apart from the network, which is the same without them."""
_EXITS = "exit_heads."
_COSTS = "cost_model"
_PROFILE = "latency_profile"


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """Provenance of a backbone.

    Attributes:
        dataset: Name of the data set.
        fingerprint: ``Dataset.fingerprint`` of the training images.
        class_names: One name per class.
        accuracy: Accuracy in percent on the val split by uniform bits: ``"32"``, ``"8"``, ...
        depth_accuracy: The same with only the first layers of each stage, by their numbers, as
            ``"2-2-2"``, and by bits; empty for networks that were not trained so.
        image_size: Height and width to which the images were resized and cropped, see
            ``load_dataset``; ``None`` for images as they are.
        flip: Whether half of them were mirrored in training; ``None`` for the data set's default.
    """

    dataset: str
    fingerprint: str
    class_names: tuple[str, ...]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    depth_accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    image_size: int | None = None
    flip: bool | None = None

    @classmethod
    def of(cls, dataset: Dataset, accuracy: Mapping[str, float] | None = None) -> "BackboneInfo":
        """Return the provenance of a backbone that was made for a data set."""
        return cls(
            dataset=dataset.name,
            fingerprint=dataset.fingerprint,
            class_names=dataset.class_names,
            accuracy=accuracy or {},
            image_size=dataset.image_size,
            flip=dataset.flip,
        )


@dataclass(frozen=True, kw_only=True)
class StoredBackbone:
    """A loaded backbone in training form and evaluation mode, with its provenance."""

    backbone: Backbone
    info: BackboneInfo


def save_backbone(backbone: Backbone, info: BackboneInfo, folder: str | Path) -> None:
    """Write ``backbone.json``, ``backbone.safetensors`` and for exits ``exits.safetensors``.

    Raises:
        ConfigError: If it was made of a model without a constructor.
    """
    if getattr(backbone.config, "constructor", "") is None:
        raise ConfigError(
            "the backbone was made of a model without a constructor, so it cannot be loaded again; "
            "give fractionalize(..., constructor='module:function')."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, profile = backbone.state_dict(), backbone.costs.profile
    heads = {name: weights.pop(name) for name in list(weights) if name.startswith(_EXITS)}
    save_tensors(folder / WEIGHTS_FILE, weights)
    if heads:
        save_tensors(folder / EXITS_FILE, heads)
    parts: dict[str, object] = {
        "config": config_to_dict(backbone.config),
        "statistics": config_to_dict(backbone.statistics),
        "info": config_to_dict(info),
    }
    if heads:
        parts["exits"] = list(backbone.costs.exits_after)
    if backbone.costs.cost_model != COMPUTATION:
        parts[_COSTS] = backbone.costs.cost_model
    if profile is not None:
        parts[_PROFILE] = config_to_dict(profile)
    write_manifest(folder / STRUCTURE_FILE, kind=backbone.family, version=FORMAT, parts=parts)


def load_stored_backbone(folder: str | Path, *, trust_code: bool = False) -> StoredBackbone:
    """Read a backbone that ``save_backbone`` wrote.

    Args:
        folder: The folder with its files, or a run folder that has them in ``backbone/``.
        trust_code: Whether to import the constructor ``module:function`` of a user's own network.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind or format.
        ConfigError: If it names a constructor that is not trusted.
        RunFolderError: If the folder is a run whose training has not finished.
    """
    folder = _own_folder(folder)
    path = folder / STRUCTURE_FILE
    record = _described(path)
    config_type, make = FAMILIES[str(record["kind"])]
    config = _part(record, "config", config_type, path)
    statistics = _part(record, "statistics", ChannelStatistics, path)
    info = _part(record, "info", BackboneInfo, path)
    weights = load_tensors(folder / WEIGHTS_FILE)
    exits = record.get("exits", [])
    if exits:
        weights |= load_tensors(folder / EXITS_FILE)
    # Made without memory, the network takes the file's tensors: nothing is allocated twice.
    with torch.device("meta"), trusting(trust_code):
        backbone = make(config, statistics)
        _set_exits(backbone, exits, path)
        profile = _part(record, _PROFILE, LatencyProfile, path) if _PROFILE in record else None
        backbone.set_cost_model(str(record.get(_COSTS, COMPUTATION)), profile)
    shared = shared_names(backbone)
    weights = with_shared_names(backbone, weights, folder / WEIGHTS_FILE)
    own = backbone.state_dict()  # a file may hold half precision
    weights = {n: t.to(own[n].dtype) if n in own else t for n, t in weights.items()}
    try:
        backbone.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {folder / WEIGHTS_FILE} do not fit the backbone that {path} describes."
        ) from error
    for first, *others in shared:  # which were loaded one by one
        for name in others:
            module, _, leaf = name.rpartition(".")
            setattr(backbone.get_submodule(module), leaf, attrgetter(first)(backbone))
    check_finite(backbone, folder / WEIGHTS_FILE)
    _, *sides = backbone.image_shape
    if info.image_size is not None and sides != [info.image_size] * 2:
        raise CheckpointError(
            f"{path} is damaged: image_size is {info.image_size}, but the network takes images of "
            f"{sides[0]} x {sides[1]} pixels."
        )
    return StoredBackbone(backbone=backbone.eval(), info=info)


def load_info(folder: str | Path) -> BackboneInfo:
    """Read the provenance of a stored backbone, see ``load_stored_backbone``, without weights."""
    path = _own_folder(folder) / STRUCTURE_FILE
    return _part(_described(path), "info", BackboneInfo, path)


def _own_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if (folder / "backbone" / STRUCTURE_FILE).is_file():
        return folder / "backbone"
    check_trained(folder)
    return folder


def _described(path: Path) -> dict[str, object]:
    return read_manifest(path, what="backbone", kinds=list(FAMILIES), version=FORMAT)


def _set_exits(backbone: Backbone, after: object, path: Path) -> None:
    if not isinstance(after, list) or not all(type(layers) is int for layers in after):
        raise CheckpointError(f"{path} is damaged: {after!r} are no numbers of gated layers.")
    try:
        backbone.set_exits(after)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_backbone(folder: str | Path, *, trust_code: bool = False) -> Backbone:
    """Read the backbone alone, see ``load_stored_backbone``."""
    return load_stored_backbone(folder, trust_code=trust_code).backbone


def with_shared_names(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return tensors of a file with every name of those that a network shares.

    ``safetensors.torch.save_model`` and transformers store each of them once, and
    ``safetensors.torch.load_model`` refuses a shared batch norm.

    Raises:
        CheckpointError: If they differ in the file.
    """
    whole = dict(tensors)
    for names in shared_names(module):
        given = [name for name in names if name in tensors]
        for name in given[1:]:
            if not torch.equal(tensors[name], tensors[given[0]]):
                raise CheckpointError(
                    f"{path} has {given[0]} and {name} with different values, but the network "
                    "shares them."
                )
        whole |= {name: tensors[given[0]] for name in names if given}
    return whole


def _part(record: Mapping[str, object], name: str, kind: type[T], path: Path) -> T:
    part = record.get(name)
    if not isinstance(part, dict):
        raise CheckpointError(f"{path} is damaged: it lacks a part of the description.")
    return config_from_dict(part, kind, source=str(path))


def weights_digest(folder: Path, *, exits: bool = False) -> str:
    """Return a short digest of a stored backbone's weights, with its exits if wanted."""
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes())
    if exits and (folder / EXITS_FILE).is_file():
        digest.update((folder / EXITS_FILE).read_bytes())
    return digest.hexdigest()[:16]
