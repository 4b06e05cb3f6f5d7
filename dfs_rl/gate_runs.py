"""What commands that train a gate share: finding or training its backbone, and what follows the training."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from dfs_rl.cli import Invocation
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.runs import RunFolder

if TYPE_CHECKING:
    from agents.training import TrainingResult
    from dfs_rl.backbones import BackboneInfo, ResNet, StoredBackbone
    from dfs_rl.cost import BitOptions
    from dfs_rl.data import Dataset
    from dfs_rl.train_backbone import TrainBackboneConfig

DIGITS = "digits"
VALIDATIONS = 20
"""How often a run is validated where nothing else is asked for."""
TRAINING = "training.json"
"""Written when a training has come to its end."""
GATE_KINDS = ("train_agent", "train_gumbel", "train_static")
"""Kinds of runs that have a gate."""

SettingsT = TypeVar("SettingsT", bound="GateSettings")


class GateSettings(Protocol):
    """What the configurations of all commands that train a gate have in common, see ``TrainAgentConfig``."""

    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def backbone(self) -> Path | None: ...  # noqa: D102
    @property
    def budget(self) -> float | None: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def run_dir(self) -> Path | None: ...  # noqa: D102
    @property
    def supernet_epochs(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102


_COUNTS = ("timesteps", "hidden", "supernet_epochs", "threads", "eval_every", "checkpoint_every")


def check_settings(config: GateSettings, *counts: str) -> None:
    """Refuse settings that no gate can be trained with.

    Args:
        config: The settings.
        counts: Names of further ones that must be at least 1.

    Raises:
        ConfigError: If one is out of range.
    """
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed is {config.seed}; allowed are 0 to {2**32 - 1}.")
    for name in (*_COUNTS, *counts):
        value = getattr(config, name, None)  # a command may have no such setting
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    if config.budget is not None and not 0 < config.budget < math.inf:
        raise ConfigError(
            f"budget is {config.budget:g} %; it must be positive and finite, or left out where it may be."
        )


@dataclass(frozen=True, kw_only=True)
class BackboneChoice:
    """Which backbone a gate is trained for.

    Attributes:
        dataset: The data set, as the command was given it.
        folder: Run of ``train_backbone``, or a backbone's folder. Without it the digits use the one that ships; for other data one
            is trained first and kept for the next run.
        epochs: Epochs of the backbone that is trained where none is given.
        device: Where to train it.
        threads: CPU threads.
    """

    dataset: str
    folder: Path | None
    epochs: int
    device: str
    threads: int

    @property
    def needs_supernet(self) -> bool:
        """Whether a backbone must be trained, or was by an earlier run."""
        return self.folder is None and self.dataset != DIGITS

    def supernet_config(self) -> "TrainBackboneConfig":
        """Return what is trained where no backbone is given: the defaults of ``train_backbone``."""
        from dfs_rl.train_backbone import TrainBackboneConfig

        return TrainBackboneConfig(
            dataset=self.dataset, epochs=self.epochs, device=self.device, threads=self.threads
        )


def choice_of(config: GateSettings, device: str) -> BackboneChoice:
    """Return which backbone a configuration asks for."""
    return BackboneChoice(
        dataset=config.dataset,
        folder=config.backbone,
        epochs=config.supernet_epochs,
        device=device,
        threads=config.threads,
    )


def find_backbone(choice: BackboneChoice, dataset: "Dataset") -> "StoredBackbone":
    """Load the backbone of that choice; train it first if need be.

    Raises:
        CheckpointError: If it cannot be read.
        DataError: If it was made for other data.
    """
    from dfs_rl.backbones import PRETRAINED_DIGITS, load_stored_backbone

    if choice.needs_supernet:
        return _own_supernet(choice, dataset)
    folder = choice.folder or PRETRAINED_DIGITS
    stored = load_stored_backbone(folder)
    check_match(stored.info, stored.backbone, dataset, str(folder))
    return stored


def preview_backbone(choice: BackboneChoice, dataset: "Dataset") -> "ResNet":
    """Return a backbone of the right shape, trained or not, so that bad settings are refused before anything is made.

    Raises:
        ConfigError: If a gate would have nothing to choose from.
    """
    from dfs_rl.train_backbone import build

    if choice.needs_supernet:
        backbone = build(choice.supernet_config(), dataset)  # untrained, it costs the same
    else:
        backbone = find_backbone(choice, dataset).backbone
    _check_menu(backbone.options, str(choice.folder))
    return backbone


def backbone_of_run(
    run: RunFolder, choice: BackboneChoice, dataset: "Dataset", *, keep_original: bool = False
) -> "StoredBackbone":
    """Return the copy of the backbone in a run's folder, which is made on first use.

    Args:
        run: The run.
        choice: Where the backbone comes from.
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
    stored = find_backbone(choice, dataset)
    if keep_original:  # what its rivals need, see evaluate
        save_backbone(stored.backbone, stored.info, run.path / BEFORE_FOLDER)
    save_backbone(stored.backbone, stored.info, folder)
    return stored


def check_match(info: "BackboneInfo", backbone: "ResNet", dataset: "Dataset", source: str) -> None:
    """Refuse a backbone that was made for other data.

    Raises:
        DataError: If image shape, classes or images differ.
    """
    if backbone.image_shape != dataset.image_shape:
        raise DataError(
            f"backbone {source} takes images of {list(backbone.image_shape)} (channels, height, width), but those of data set "
            f"{dataset.name!r} are {list(dataset.image_shape)}."
        )
    if info.class_names != dataset.class_names:
        raise DataError(
            f"backbone {source} tells the classes of {info.dataset!r} apart ({_few(info.class_names)}), but data set "
            f"{dataset.name!r} has {_few(dataset.class_names)}."
        )
    if info.fingerprint != dataset.fingerprint:
        raise DataError(
            f"backbone {source} was trained on other images or splits than those of data set {dataset.name!r} (fingerprint "
            f"{info.fingerprint}, not {dataset.fingerprint}); a gate needs images that its backbone has not seen."
        )


def train_and_evaluate(
    invocation: Invocation[SettingsT],
    *,
    kind: str,
    prog: str,
    prepare: "Callable[[SettingsT, Dataset, str], str]",
    train: "Callable[[SettingsT, Dataset, RunFolder, str], TrainingResult]",
) -> None:
    """Run a command that trains a gate: train it, unless the run is finished, evaluate it and show what came out.

    Args:
        invocation: What was asked for.
        kind: Kind of the command's run folders.
        prog: How the command is called.
        prepare: Refuses what will not do before a folder is made, and returns what the run is called after.
        train: Trains the gate on a data set and device, or goes on with it.
    """
    import torch

    from dfs_rl.data import load_dataset
    from dfs_rl.devices import resolve_device
    from dfs_rl.evaluate import evaluate_run
    from dfs_rl.files import exclusive
    from dfs_rl.reporting.table import summary_text
    from dfs_rl.runs import write_json

    config = invocation.config
    torch.set_num_threads(config.threads)
    device = str(resolve_device(config.device))
    dataset = load_dataset(config.dataset)
    run = invocation.resume or RunFolder.create(
        config.run_dir,
        kind=kind,
        name=prepare(config, dataset, device),
        config=config,
        command=invocation.command,
        fingerprint=dataset.fingerprint,
    )
    run.check_data(dataset.fingerprint, dataset.name)
    with exclusive(run.path):
        if (run.path / TRAINING).is_file():
            say(f"The training in {run.path} is finished.")
        else:
            try:
                result = train(config, dataset, run, device)
            except KeyboardInterrupt:
                again = f"{prog} --resume {run.path}"
                raise KeyboardInterrupt(f"Interrupted and saved; go on with: {again}") from None
            write_json(
                run.path / TRAINING,
                {"best_on_val": result.best, "images_seen": result.images_seen},
            )
            say(
                f"Kept the gate of step {result.best['timesteps']:,}: the latest within one standard error of "
                "the highest mean reward on the val split."
            )
        evaluation = evaluate_run(
            run,
            dataset=dataset,
            device=device,
            progress=lambda text: say(f"Evaluating: {text} ..."),
        )
    sys.stdout.write(summary_text(evaluation.summary))
    sys.stdout.flush()
    say(f"Everything is in {run.path}; pictures:")
    for picture in sorted(run.plots_dir.glob("*.png")):
        say(f"  {picture}")


def say(text: str) -> None:
    """Tell the user, at once."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _own_supernet(choice: BackboneChoice, dataset: "Dataset") -> "StoredBackbone":
    """Return the supernet with ``train_backbone``'s defaults for a data set: an earlier run's, or a new one."""
    import hashlib

    from dfs_rl import train_backbone
    from dfs_rl.backbones import load_stored_backbone
    from dfs_rl.backbones.storage import STRUCTURE_FILE
    from dfs_rl.config import config_to_dict
    from dfs_rl.files import exclusive
    from dfs_rl.gating.model import BACKBONE_FOLDER
    from dfs_rl.runs.folder import RECORD

    wanted = choice.supernet_config()
    settings = config_to_dict(wanted)
    relevant = {
        name: value
        for name, value in settings.items()
        if name not in ("dataset", "device", "threads", "run_dir")
    }
    digest = hashlib.sha256(
        repr((dataset.fingerprint, sorted(relevant.items()))).encode()
    ).hexdigest()[:8]
    # The digest tells the data by its content; what the data set is called may have changed since.
    earlier = sorted(p for p in Path("runs").glob(f"supernet-*-{digest}") if p.is_dir())
    path = earlier[0] if earlier else Path("runs") / f"supernet-{dataset.name}-{digest}"
    with exclusive(
        path,
        waiting=lambda: say(f"Another process trains the backbone in {path}; waiting for it."),
    ):
        if (path / BACKBONE_FOLDER / STRUCTURE_FILE).is_file():
            say(f"No backbone given: using the one trained before in {path}.")
            stored = load_stored_backbone(path)
            check_match(stored.info, stored.backbone, dataset, str(path))
            return stored
        trainer = train_backbone.make_trainer(wanted, dataset)
        if (path / RECORD).is_file():
            say(f"No backbone given: going on with the one begun in {path}.")
            folder = RunFolder.open(path, train_backbone.KIND)
        else:
            say(
                f"No backbone given: training {wanted.backbone} on {dataset.name!r} first, into {path}; "
                "the next run finds it there."
            )
            folder = RunFolder.create(
                path,
                kind=train_backbone.KIND,
                name="supernet",
                config=wanted,
                command=(train_backbone.PROG,),
                fingerprint=dataset.fingerprint,
            )
        return train_backbone.train_supernet(wanted, trainer, dataset, folder)


def _check_menu(options: "BitOptions", source: str) -> None:
    if len(options) == 1:
        raise ConfigError(
            f"backbone {source} runs at {options[0]} bit only; a gate needs two options to choose from."
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, ... {len(names)} in all" if len(names) > 4 else shown  # noqa: PLR2004 - enough to recognise them
