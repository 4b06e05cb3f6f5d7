"""Which backbone a gate is trained for: one that is given, the one that ships, or one that is trained first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_rl.errors import ConfigError, DataError
from dfs_rl.experiments.config import BackboneSettings
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.trusted_import import is_constructor

if TYPE_CHECKING:
    from dfs_rl.backbones import Backbone, BackboneInfo, StoredBackbone
    from dfs_rl.costs import BitOptions
    from dfs_rl.data import Dataset
    from dfs_rl.experiments.backbone_config import TrainBackboneConfig
    from dfs_rl.gating.networks import LearnedGate


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Which backbone a gate is trained for.

    Attributes:
        dataset: The data set, as the command was given it.
        folder: Run of ``train_backbone``, or a backbone's folder, or ``module:function`` that makes
            a user's network. Without it the digits use the one that ships; for other data one is
            trained first and kept for the next run.
        weights: Weights of a user's network.
        image_size: See ``load_dataset``; of the backbone that is trained where none is given.
        flip: Likewise.
        epochs: Epochs of the backbone that is trained where none is given.
        device: Where to train it.
        threads: CPU threads.
        exits: Whether to keep the exits that it may have.
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

    def __post_init__(self) -> None:
        if self.weights is not None and self.constructor is None:
            raise ConfigError(
                f"weights is {self.weights}, but backbone is {self.folder}; weights go with a "
                "constructor, --backbone module:function."
            )

    @property
    def constructor(self) -> str | None:
        """``module:function`` that makes the backbone, if it is a user's own."""
        return str(self.folder) if is_constructor(self.folder) else None

    @property
    def needs_supernet(self) -> bool:
        """Whether a backbone must be trained, or was by an earlier run."""
        return self.folder is None and self.dataset != DIGITS

    def supernet_config(self, dataset: "Dataset") -> "TrainBackboneConfig":
        """Return what is trained where no backbone is given: the defaults of ``train_backbone``, in batches of at most all images."""
        from dfs_rl.experiments.backbone_config import TrainBackboneConfig
        from dfs_rl.training.supernet import SupernetConfig

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


def load_data(config: BackboneSettings, run: RunFolder | None = None) -> "Dataset":
    """Load the data set of a configuration, its images as the backbone takes them.

    A stored backbone keeps how its images were resized, and whether they were mirrored; for any
    other the configuration says so.

    Args:
        config: Names data set and backbone.
        run: The run that goes on, whose own copy of the backbone counts if there is one.

    Raises:
        ConfigError: If configuration and stored backbone contradict each other.
        CheckpointError: If the backbone cannot be read.
        DataError: If the data set cannot be read.
    """
    from dfs_rl.data import load_dataset

    assert config.dataset is not None
    image_size, flip = config.image_size, config.flip
    folder = _stored_folder(config, run)
    if folder is not None:
        from dfs_rl.backbones.storage import load_info

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
    """Return where the backbone of a configuration is stored; ``None`` where it is yet to be made."""
    from dfs_rl.backbones import PRETRAINED_DIGITS
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.gating.model import BACKBONE_FOLDER

    if run is not None and (run.path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
        return run.path / BACKBONE_FOLDER
    folder = config.backbone or getattr(config, "init_gate", None)
    if folder is None:
        return PRETRAINED_DIGITS if config.dataset == DIGITS else None
    gone = run is not None and not folder.exists()  # a run that goes on may need it no more
    return None if gone or is_constructor(folder) else folder


def load_or_train_backbone(spec: BackboneSpec, dataset: "Dataset") -> "StoredBackbone":
    """Load the backbone of that choice; train it first if need be.

    Raises:
        CheckpointError: If it cannot be read.
        DataError: If it was made for other data.
    """
    from dfs_rl.backbones import PRETRAINED_DIGITS, load_stored_backbone

    if spec.needs_supernet:
        stored = _default_supernet(spec, dataset)
    elif spec.constructor is not None:
        from dfs_rl.training.custom_model import build_calibrated_backbone

        stored = build_calibrated_backbone(
            spec.constructor, dataset, weights=spec.weights, device=spec.device
        )
    else:
        folder = spec.folder or PRETRAINED_DIGITS
        stored = load_stored_backbone(folder)
        check_match(stored.info, stored.backbone, dataset, str(folder))
    if not spec.exits:
        stored.backbone.set_exits(())
    return stored


def preview_backbone(spec: BackboneSpec, dataset: "Dataset") -> "Backbone":
    """Return a backbone of the right shape, trained or not, so that bad settings are refused before anything is made.

    It says so if exits are left out, since what is refused may be for want of them.

    Raises:
        ConfigError: If a gate would have nothing to choose from.
    """
    from dfs_rl.experiments.backbone_config import build

    if spec.needs_supernet:
        backbone = build(spec.supernet_config(dataset), dataset)  # untrained, it costs the same
    elif spec.constructor is not None:
        from dfs_rl.training.custom_model import build_custom_backbone

        backbone = build_custom_backbone(spec.constructor, dataset, weights=spec.weights)
    else:
        backbone = load_or_train_backbone(replace(spec, exits=True), dataset).backbone
    _check_menu(backbone.options, str(spec.folder))
    if not spec.exits and backbone.costs.exits:
        print_status("The backbone's exits are left out: this gate walks every image to the end.")
        backbone.set_exits(())
    return backbone


def backbone_of_run(
    run: RunFolder, spec: BackboneSpec, dataset: "Dataset", *, keep_original: bool = False
) -> "StoredBackbone":
    """Return the copy of the backbone in a run's folder, which is made on first use.

    Args:
        run: The run.
        spec: Where the backbone comes from.
        dataset: It must have been made for.
        keep_original: Whether to keep a second copy, because training will change the first.
    """
    from dfs_rl.backbones import load_stored_backbone, save_backbone
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER

    folder = run.path / BACKBONE_FOLDER
    if (folder / STRUCTURE_FILE).is_file():
        stored = load_stored_backbone(folder)
        check_match(stored.info, stored.backbone, dataset, str(folder))
        return stored
    stored = load_or_train_backbone(spec, dataset)
    if keep_original:  # what its baselines need, see evaluate
        save_backbone(stored.backbone, stored.info, run.path / BEFORE_FOLDER)
    save_backbone(stored.backbone, stored.info, folder)
    return stored


def load_learned_gate(run: Path) -> "LearnedGate":
    """Load the gate that a run learned.

    Raises:
        CheckpointError: If it has none.
        ConfigError: If it is a table or a cascade of them, from which nothing can be learned on.
    """
    from dfs_rl.gating.base import TableGate
    from dfs_rl.gating.model import GATE_FOLDER
    from dfs_rl.gating.networks import LearnedGate
    from dfs_rl.gating.storage import load_gate

    gate = load_gate(run / GATE_FOLDER)
    if not isinstance(gate, LearnedGate):
        raise ConfigError(
            f"the gate of {run} is "
            f"{'a table' if isinstance(gate, TableGate) else 'a cascade of tables'}; a gate goes "
            "on from one that "
            "looks at its images."
        )
    return gate


def check_same_backbone(run: Path, dataset: "Dataset", spec: BackboneSpec) -> None:
    """Refuse a run whose gate steers another backbone than the chosen one, or was learned on other images.

    Raises:
        DataError: If images or weights differ.
    """
    import torch

    from dfs_rl.backbones import load_stored_backbone
    from dfs_rl.gating.model import BACKBONE_FOLDER

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


def check_match(
    info: "BackboneInfo", backbone: "Backbone", dataset: "Dataset", source: str
) -> None:
    """Refuse a backbone that was made for other data.

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


def _default_supernet(spec: BackboneSpec, dataset: "Dataset") -> "StoredBackbone":
    """Return the supernet with ``train_backbone``'s defaults for a data set: an earlier run's, or a new one."""
    import hashlib

    from dfs_rl.backbones import load_stored_backbone
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.experiments import supernet_training
    from dfs_rl.gating.model import BACKBONE_FOLDER
    from dfs_rl.utils.config import config_to_dict
    from dfs_rl.utils.io import file_lock
    from dfs_rl.utils.run_folder import RECORD

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
    # The digest tells the data by its content; what the data set is called may have changed since.
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
            print_status(f"No backbone given: going on with the one begun in {path}.")
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


def _check_menu(options: "BitOptions", source: str) -> None:
    if len(options) == 1:
        raise ConfigError(
            f"backbone {source} runs at {options[0]} bit only; a gate needs two options to choose "
            "from."
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... {len(names)} in all" if len(names) > 4 else shown  # noqa: PLR2004 - enough to recognise them
