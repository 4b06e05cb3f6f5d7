"""Selection of a gate's backbone: a given one, the included one, or one that is trained first."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dfs_rl.backbones import (
    PRETRAINED_DIGITS,
    Backbone,
    BackboneInfo,
    StoredBackbone,
    load_stored_backbone,
    save_backbone,
)
from dfs_rl.backbones.storage import STRUCTURE_FILE, load_info
from dfs_rl.costs.machine import load_latency_profile
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.experiments import supernet_training
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.config import BackboneSettings, GateRunConfig, RunConfig, create_run
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.loading import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.training.custom_model import build_pretrained_backbone, calibrate_custom_backbone
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.constants import DIGITS, MNIST5K, Corruptions
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.io import file_lock
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder, program
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.trusted_import import is_constructor


def load_data(config: BackboneSettings, run: RunFolder | None = None) -> Dataset:
    """Load the data set of a configuration, with images as the backbone takes them.

    A stored backbone, first of all that of a resumed ``run``, records how its images were resized
    and mirrored; for any other the configuration decides.
    """
    assert config.dataset is not None
    image_size, flip = config.image_size, config.flip
    folder = _stored_folder(config, run)
    if folder is not None:
        info = load_info(folder)
        if image_size not in (None, info.image_size):
            own = "as they come" if info.image_size is None else f"at {info.image_size} pixels"
            raise ConfigError(
                f"image_size is {image_size}, but the backbone in {folder} takes images {own}; "
                "leave it out, or train another backbone."
            )
        if flip is not None and info.flip not in (None, flip):
            raise ConfigError(
                f"flip is {str(flip).lower()}, but the backbone in {folder} was trained "
                f"{'with' if info.flip else 'without'} mirrored images; leave it out, or train "
                "another backbone."
            )
        image_size, flip = info.image_size, info.flip if flip is None else flip
    stream: Corruptions = getattr(config, "corruptions", None) or "none"
    return load_dataset(config.dataset, image_size=image_size, flip=flip, corruptions=stream)


def _stored_folder(config: BackboneSettings, run: RunFolder | None) -> Path | None:
    """Return the folder of a configuration's stored backbone, ``None`` if not yet made."""
    if run is not None and (run.path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
        return run.path / BACKBONE_FOLDER
    folder = config.backbone_source
    if folder is None:
        return PRETRAINED_DIGITS if config.dataset == DIGITS else None
    gone = run is not None and not folder.exists()  # a resumed run may not need it
    return None if gone or is_constructor(folder) else folder


def preview_backbone(config: RunConfig, dataset: Dataset) -> StoredBackbone:
    """Return a backbone of the right shape, to validate settings early; exits are kept.

    It is the chosen backbone, except that the user's own is not calibrated yet and the default of a
    data set not trained.

    Raises:
        ConfigError: If a gate has only one bit option to choose from, or a setting has no effect.
        DataError: If it was made for other data.
    """
    dataset = dataset.clean
    constructor = _constructor(config)
    _check_supernet_epochs(config)
    if _needs_supernet(config):
        wanted = supernet_config(config, dataset)
        backbone = supernet_training.build(wanted, dataset)  # same cost as the trained one
        stored = StoredBackbone(backbone=backbone, info=BackboneInfo.of(dataset))
    elif constructor is not None:
        backbone = build_pretrained_backbone(constructor, dataset, config.weights)
        stored = StoredBackbone(backbone=backbone, info=BackboneInfo.of(dataset))
    else:
        stored = _load(config.backbone_source or PRETRAINED_DIGITS, dataset)
    if isinstance(config, GateRunConfig):
        stored.backbone.set_cost_model(config.cost, load_latency_profile(config.latency))
        options = stored.backbone.options
        if len(options) == 1:
            raise ConfigError(
                f"backbone {config.backbone_source} runs at {options[0]} bit only; a gate needs "
                "two options to choose from."
            )
    return stored


def load_or_train_backbone(
    config: RunConfig, dataset: Dataset, preview: StoredBackbone | None = None
) -> StoredBackbone:
    """Return the backbone of a configuration; calibrate or train it first if necessary.

    ``preview`` is from ``preview_backbone``, which this function calls otherwise.
    """
    dataset = dataset.clean
    constructor = _constructor(config)
    if _needs_supernet(config):
        stored = _default_supernet(config, dataset)
    else:
        stored = preview or preview_backbone(config, dataset)
        if constructor is not None:
            stored = calibrate_custom_backbone(
                stored.backbone, dataset, name=constructor, device=resolve_device(config.device)
            )
    if isinstance(config, GateRunConfig):
        stored.backbone.set_cost_model(config.cost, load_latency_profile(config.latency))
        if not config.uses_exits:
            stored.backbone.set_exits(())
    return stored


def backbone_of_run(
    run: RunFolder, config: GateRunConfig, dataset: Dataset, preview: StoredBackbone | None = None
) -> StoredBackbone:
    """Return the copy of the backbone in a run's folder; the first call makes it.

    If training changes the backbone, a second copy is for the baselines in ``evaluate``.
    """
    folder = run.path / BACKBONE_FOLDER
    if (folder / STRUCTURE_FILE).is_file():
        return _load(folder, dataset)
    stored = load_or_train_backbone(config, dataset, preview)
    if config.cotrains:
        save_backbone(stored.backbone, stored.info, run.path / BEFORE_FOLDER)
    save_backbone(stored.backbone, stored.info, folder)
    return stored


def supernet_config(config: RunConfig, dataset: Dataset) -> TrainBackboneConfig:
    """Return the configuration of the default supernet of a data set."""
    usual = SupernetConfig()
    network: dict[str, Any] = {}
    training = replace(usual, batch_size=min(usual.batch_size, len(dataset.train)))
    if config.dataset == MNIST5K:
        # It learns in a minute, and at 1 and 2 bit errs more than at 4, so that a gate can pay.
        network = {"backbone": "resnet14", "width": 12, "bits": (0, 1, 2, 4, 8, 32)}
        training = replace(usual, batch_size=32, learning_rate=0.05)
    return TrainBackboneConfig(
        dataset=config.dataset,
        image_size=config.image_size,
        flip=config.flip,
        epochs=config.supernet_epochs,
        device=str(resolve_device(config.device)),
        threads=config.threads,
        training=training,
        **network,
    )


def _needs_supernet(config: RunConfig) -> bool:
    """Return True if the backbone is a default supernet, trained now or by an earlier run."""
    return config.backbone_source is None and config.dataset != DIGITS


def _check_supernet_epochs(config: RunConfig) -> None:
    """Check that epochs are given only for a default supernet."""
    epochs, source = config.supernet_epochs, config.backbone_source
    if epochs != RunConfig.supernet_epochs and not _needs_supernet(config):
        given = f"backbone is {source}" if source else f"{config.dataset} come with a backbone"
        raise ConfigError(
            f"supernet_epochs is {epochs}, but {given}, so no supernet is trained; leave it out."
        )


def _constructor(config: RunConfig) -> str | None:
    """Return the ``module:function`` that makes a user's backbone, ``None`` for others."""
    source = config.backbone_source
    if is_constructor(source):
        return str(source)
    if config.weights is not None:
        raise ConfigError(
            f"weights is {config.weights}, but backbone is {source}; weights go with a "
            "constructor, --backbone module:function."
        )
    return None


def _load(folder: Path, dataset: Dataset) -> StoredBackbone:
    """Load a stored backbone, and check that it was made for a data set.

    Raises:
        DataError: If image shape, classes or images differ.
    """
    stored, dataset = load_stored_backbone(folder), dataset.clean
    info, shape = stored.info, stored.backbone.image_shape
    if shape != dataset.image_shape:
        raise DataError(
            f"backbone {folder} takes images of {list(shape)} (channels, height, width), but those "
            f"of data set {dataset.name!r} are {list(dataset.image_shape)}; it was trained on "
            f"{info.dataset!r}: name its data set by --dataset."
        )
    if info.class_names != dataset.class_names:
        raise DataError(
            f"backbone {folder} tells the classes of {info.dataset!r} apart "
            f"({_few(info.class_names)}), but data set {dataset.name!r} has "
            f"{_few(dataset.class_names)}."
        )
    if info.fingerprint != dataset.fingerprint:
        raise DataError(
            f"backbone {folder} was trained on other images or splits than those of data set "
            f"{dataset.name!r} (fingerprint {info.fingerprint}, not {dataset.fingerprint}); a gate "
            "needs images that its backbone has not seen."
        )
    return stored


def load_learned_gate(run: Path) -> LearnedGate:
    """Load the learned gate of a run; a table or a cascade cannot initialize a gate."""
    gate = load_gate(run / GATE_FOLDER)
    if not isinstance(gate, LearnedGate):
        kind = "a table" if isinstance(gate, TableGate) else "a cascade of tables"
        raise ConfigError(
            f"the gate of {run} is {kind}; a gate goes on from one that looks at its images."
        )
    return gate


def check_same_backbone(run: Path, config: RunConfig, dataset: Dataset, backbone: Backbone) -> None:
    """Check that a run's gate was learned on the configuration's backbone and the same images."""
    if _constructor(config) is not None:  # the preview is not calibrated yet
        backbone = load_or_train_backbone(config, dataset).backbone
    ours = backbone.state_dict()
    theirs = _load(run / BACKBONE_FOLDER, dataset).backbone.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[k], theirs[k]) for k in ours):
        raise DataError(
            f"the gate of {run} was learned on a backbone of its own, not on "
            f"{config.backbone_source}; give its own with --backbone {run / BACKBONE_FOLDER}."
        )


def _default_supernet(config: RunConfig, dataset: Dataset) -> StoredBackbone:
    """Return the default supernet of a data set: from an earlier run, or newly trained."""
    wanted = supernet_config(config, dataset)
    kept_out = ("dataset", "device", "threads", "workers", "run_dir")
    settings = {k: v for k, v in config_to_dict(wanted).items() if k not in kept_out}
    content = repr((dataset.fingerprint, sorted(settings.items())))
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    # The digest identifies the data by content; the name of the data set may have changed.
    earlier = sorted(p for p in Path("runs").glob(f"supernet-*-{digest}") if p.is_dir())
    path = earlier[0] if earlier else Path("runs") / f"supernet-{dataset.name}-{digest}"
    waiting = f"Another process trains the backbone in {path}; waiting for it."
    with file_lock(path, on_wait=lambda: print_status(waiting)):
        if (path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
            print_status(f"No backbone given: using the one trained before in {path}.")
            return _load(path, dataset)
        trainer = supernet_training.make_trainer(wanted, dataset)
        if (path / RECORD).is_file():
            print_status(f"No backbone given: resuming the training in {path}.")
            folder = RunFolder.open(path, wanted.KIND)
        else:
            print_status(
                f"No backbone given: training {wanted.backbone} on {dataset.name!r} first, into "
                f"{path}; the next run finds it there."
            )
            command, data = (program(wanted.KIND),), dataset.fingerprint
            folder = create_run(wanted, "supernet", command=command, fingerprint=data, path=path)
        return supernet_training.train_supernet(wanted, trainer, dataset, folder)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... {len(names)} in all" if len(names) > 4 else shown  # noqa: PLR2004
