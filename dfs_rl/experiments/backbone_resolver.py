"""Selection of a gate's backbone: a given one, the included one, or one that is trained first."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from dfs_rl.costs import COMPUTATION, BitOptions
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.experiments import supernet_training
from dfs_rl.experiments.backbone_config import TrainBackboneConfig, build
from dfs_rl.experiments.config import BackboneSettings, GateRunConfig, RunConfig
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.training.custom_model import build_calibrated_backbone, build_custom_backbone
from dfs_rl.training.supernet import SupernetConfig
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.io import file_lock
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import RECORD
from dfs_rl.utils.trusted_import import is_constructor


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Specification of the backbone of a gate.

    Attributes:
        dataset: Data set, as given to the command.
        folder: Run of ``train_backbone``, or a backbone's folder, or ``module:function`` that makes
            a user's network. Without it the digits use the included backbone; for other data one is
            trained first and kept for later runs.
        weights: Weights of a user's network.
        image_size: Image size of a backbone that is trained here, see ``load_dataset``.
        flip: Mirroring of training images for a backbone that is trained here.
        epochs: Epochs of a backbone that is trained here.
        device: Device to train on.
        threads: Number of CPU threads.
        exits: True to keep the backbone's exits, if it has any.
        cost_model: Cost model of the backbone's cost table.
    """

    dataset: str
    folder: Path | None
    epochs: int
    device: str
    threads: int
    weights: Path | None = None
    image_size: int | None = None
    flip: bool | None = None
    exits: bool = True
    cost_model: str = COMPUTATION

    def __post_init__(self) -> None:
        if self.weights is not None and self.constructor is None:
            raise ConfigError(
                f"weights is {self.weights}, but backbone is {self.folder}; weights go with a "
                "constructor, --backbone module:function."
            )

    @property
    def constructor(self) -> str | None:
        """``module:function`` that makes a user's backbone, ``None`` for others."""
        return str(self.folder) if is_constructor(self.folder) else None

    @property
    def needs_supernet(self) -> bool:
        """True if the backbone is a default supernet, trained now or by an earlier run."""
        return self.folder is None and self.dataset != DIGITS

    def supernet_config(self, dataset: Dataset) -> TrainBackboneConfig:
        """Return the configuration of the default supernet, with batches of at most all images."""
        usual = SupernetConfig()
        return TrainBackboneConfig(
            dataset=self.dataset,
            image_size=self.image_size,
            flip=self.flip,
            epochs=self.epochs,
            device=self.device,
            threads=self.threads,
            training=replace(usual, batch_size=min(usual.batch_size, len(dataset.train))),
        )


def backbone_spec(config: RunConfig, device: str) -> BackboneSpec:
    """Return the backbone specification of a configuration."""
    spec = BackboneSpec(
        dataset=config.dataset,
        folder=config.backbone_source,
        weights=config.weights,
        image_size=config.image_size,
        flip=config.flip,
        epochs=config.supernet_epochs,
        device=device,
        threads=config.threads,
    )
    if isinstance(config, GateRunConfig):
        return replace(spec, cost_model=config.cost_model, exits=config.uses_exits)
    return spec


def load_data(config: BackboneSettings, run: RunFolder | None = None) -> Dataset:
    """Load the data set of a configuration, with images as the backbone takes them.

    A stored backbone records how its images were resized and mirrored; for any other the
    configuration decides.

    Args:
        config: Configuration with data set and backbone.
        run: Resumed run; its copy of the backbone takes precedence if there is one.

    Raises:
        ConfigError: If configuration and stored backbone contradict each other.
        CheckpointError: If the backbone cannot be read.
        DataError: If the data set cannot be read.
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
                f"{'with' if info.flip else 'without'} mirrored "
                "images; leave it out, or train another backbone."
            )
        image_size, flip = info.image_size, info.flip if flip is None else flip
    return load_dataset(config.dataset, image_size=image_size, flip=flip)


def _stored_folder(config: BackboneSettings, run: RunFolder | None) -> Path | None:
    """Return the folder of a configuration's stored backbone, ``None`` if not yet made."""
    if run is not None and (run.path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
        return run.path / BACKBONE_FOLDER
    folder = config.backbone_source
    if folder is None:
        return PRETRAINED_DIGITS if config.dataset == DIGITS else None
    gone = run is not None and not folder.exists()  # a resumed run may not need it
    return None if gone or is_constructor(folder) else folder


def load_or_train_backbone(spec: BackboneSpec, dataset: Dataset) -> StoredBackbone:
    """Load the specified backbone; train it first if necessary.

    Raises:
        CheckpointError: If it cannot be read.
        DataError: If it was made for other data.
    """
    if spec.needs_supernet:
        stored = _default_supernet(spec, dataset)
    elif spec.constructor is not None:
        stored = build_calibrated_backbone(
            spec.constructor, dataset, weights=spec.weights, device=spec.device
        )
    else:
        folder = spec.folder or PRETRAINED_DIGITS
        stored = load_stored_backbone(folder)
        check_match(stored.info, stored.backbone, dataset, str(folder))
    if not spec.exits:
        stored.backbone.set_exits(())
    stored.backbone.set_cost_model(spec.cost_model)
    return stored


def preview_backbone(spec: BackboneSpec, dataset: Dataset) -> Backbone:
    """Return a backbone of the right shape, trained or not, to validate settings early.

    It prints a notice if exits are left out, since a later error may result from that.

    Raises:
        ConfigError: If the backbone has only one bit option.
    """
    if spec.needs_supernet:
        backbone = build(spec.supernet_config(dataset), dataset)  # same cost as the trained one
    elif spec.constructor is not None:
        backbone = build_custom_backbone(spec.constructor, dataset, weights=spec.weights)
    else:
        backbone = load_or_train_backbone(replace(spec, exits=True), dataset).backbone
    backbone.set_cost_model(spec.cost_model)
    _check_menu(backbone.options, str(spec.folder))
    if not spec.exits and backbone.costs.exits:
        print_status("This gate does not use the backbone's exits; every image runs to the end.")
        backbone.set_exits(())
    return backbone


def backbone_of_run(
    run: RunFolder, spec: BackboneSpec, dataset: Dataset, *, keep_original: bool = False
) -> StoredBackbone:
    """Return the copy of the backbone in a run's folder; the first call makes it.

    Args:
        run: Run folder.
        spec: Specification of the backbone.
        dataset: Data set that the backbone must match.
        keep_original: True to keep a second copy, because training changes the first.
    """
    folder = run.path / BACKBONE_FOLDER
    if (folder / STRUCTURE_FILE).is_file():
        stored = load_stored_backbone(folder)
        check_match(stored.info, stored.backbone, dataset, str(folder))
        return stored
    stored = load_or_train_backbone(spec, dataset)
    if keep_original:  # for the baselines in evaluate
        save_backbone(stored.backbone, stored.info, run.path / BEFORE_FOLDER)
    save_backbone(stored.backbone, stored.info, folder)
    return stored


def load_learned_gate(run: Path) -> LearnedGate:
    """Load the learned gate of a run.

    Raises:
        CheckpointError: If it has none.
        ConfigError: If it is a static bit table or a cascade, which cannot initialize a gate.
    """
    gate = load_gate(run / GATE_FOLDER)
    if not isinstance(gate, LearnedGate):
        raise ConfigError(
            f"the gate of {run} is "
            f"{'a table' if isinstance(gate, TableGate) else 'a cascade of tables'}; a gate goes "
            "on from one that "
            "looks at its images."
        )
    return gate


def check_same_backbone(run: Path, dataset: Dataset, spec: BackboneSpec) -> None:
    """Check that a run's gate was learned on the chosen backbone and on the same images.

    Raises:
        DataError: If images or weights differ.
    """
    theirs = load_stored_backbone(run / BACKBONE_FOLDER)
    check_match(theirs.info, theirs.backbone, dataset, str(run))
    ours = load_or_train_backbone(spec, dataset).backbone.state_dict()
    weights = theirs.backbone.state_dict()
    same = ours.keys() == weights.keys() and all(torch.equal(ours[k], weights[k]) for k in ours)
    if not same:
        raise DataError(
            f"the gate of {run} was learned on a backbone of its own, not on "
            f"{spec.folder or 'the one that is used here'}; give its "
            f"own with --backbone {run / BACKBONE_FOLDER}."
        )


def check_match(info: BackboneInfo, backbone: Backbone, dataset: Dataset, source: str) -> None:
    """Check that a backbone was made for a data set.

    Raises:
        DataError: If image shape, classes or images differ.
    """
    if backbone.image_shape != dataset.image_shape:
        raise DataError(
            f"backbone {source} takes images of {list(backbone.image_shape)} (channels, height, "
            "width), but those of data set "
            f"{dataset.name!r} are {list(dataset.image_shape)}; it was trained on "
            f"{info.dataset!r}: name its data set by --dataset."
        )
    if info.class_names != dataset.class_names:
        raise DataError(
            f"backbone {source} tells the classes of {info.dataset!r} apart "
            f"({_few(info.class_names)}), but data set "
            f"{dataset.name!r} has {_few(dataset.class_names)}."
        )
    if info.fingerprint != dataset.fingerprint:
        raise DataError(
            f"backbone {source} was trained on other images or splits than those of data set "
            f"{dataset.name!r} (fingerprint "
            f"{info.fingerprint}, not {dataset.fingerprint}); a gate needs images that its "
            "backbone has not seen."
        )


def _default_supernet(spec: BackboneSpec, dataset: Dataset) -> StoredBackbone:
    """Return the default supernet of a data set: from an earlier run, or newly trained."""
    wanted = spec.supernet_config(dataset)
    settings = config_to_dict(wanted)
    relevant = {
        name: value
        for name, value in settings.items()
        if name not in ("dataset", "device", "threads", "workers", "run_dir")
    }
    digest = hashlib.sha256(
        repr((dataset.fingerprint, sorted(relevant.items()))).encode()
    ).hexdigest()[:8]
    # The digest identifies the data by content; the name of the data set may have changed.
    earlier = sorted(p for p in Path("runs").glob(f"supernet-*-{digest}") if p.is_dir())
    path = earlier[0] if earlier else Path("runs") / f"supernet-{dataset.name}-{digest}"
    with file_lock(
        path,
        on_wait=lambda: print_status(
            f"Another process trains the backbone in {path}; waiting for it."
        ),
    ):
        if (path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
            print_status(f"No backbone given: using the one trained before in {path}.")
            stored = load_stored_backbone(path)
            check_match(stored.info, stored.backbone, dataset, str(path))
            return stored
        trainer = supernet_training.make_trainer(wanted, dataset)
        if (path / RECORD).is_file():
            print_status(f"No backbone given: resuming the training in {path}.")
            folder = RunFolder.open(path, supernet_training.KIND)
        else:
            print_status(
                f"No backbone given: training {wanted.backbone} on {dataset.name!r} first, into "
                f"{path}; "
                "the next run finds it there."
            )
            folder = RunFolder.create(
                path,
                kind=supernet_training.KIND,
                name="supernet",
                config=wanted,
                command=(supernet_training.PROG,),
                fingerprint=dataset.fingerprint,
            )
        return supernet_training.train_supernet(wanted, trainer, dataset, folder)


def _check_menu(options: BitOptions, source: str) -> None:
    if len(options) == 1:
        raise ConfigError(
            f"backbone {source} runs at {options[0]} bit only; a gate needs two options to choose "
            "from."
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... {len(names)} in all" if len(names) > 4 else shown  # noqa: PLR2004
