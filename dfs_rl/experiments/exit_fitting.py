"""Fitting of exits to a trained backbone, whose network stays unchanged."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from dfs_rl.backbones import StoredBackbone, load_stored_backbone, save_backbone
from dfs_rl.costs import check_exits
from dfs_rl.data import Dataset, augment
from dfs_rl.data.batching import epoch_batches
from dfs_rl.evaluation.baselines.early_exit import run_exits
from dfs_rl.experiments.backbone_config import TrainExitsConfig
from dfs_rl.experiments.backbone_resolver import load_data, load_or_train_backbone
from dfs_rl.experiments.config import create_run
from dfs_rl.gating.loading import BACKBONE_FOLDER
from dfs_rl.training.calibration import fit_exits
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.device import resolve_device, set_threads
from dfs_rl.utils.io import write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record
from dfs_rl.utils.seeding import torch_generator

SUMMARY = "summary.json"
_BATCH = 512
_MAX_IMAGES = 20_000
"""Maximum number of feature rows; more rows do not improve the heads."""
_MAX_FEATURE_BYTES = 2**30
"""Maximum size of the features of all heads in bytes."""


@dataclass(frozen=True, kw_only=True)
class ExitsSummary:
    """Content of ``summary.json``, with the accuracy of each exit on val by all layers' bits."""

    exits_after: tuple[int, ...]
    val_accuracy: dict[str, list[float]]


def run(invocation: Invocation[TrainExitsConfig]) -> None:
    """Fit exits to a backbone, store both and print the accuracy of every exit.

    The stored backbone marks the run as finished. An interrupted run starts over, since fitting
    takes seconds.
    """
    config, folder, stored = invocation.config, invocation.resume, None
    set_threads(config.threads, resumed=folder is not None)
    device = str(resolve_device(config.device))
    dataset = load_data(config, folder)
    if folder is None:
        stored = _load_backbone(config, dataset)
        name, command = f"exits-{dataset.name}", invocation.command
        folder = create_run(config, name, command=command, fingerprint=dataset.fingerprint)
    try:
        with folder.lock():
            folder.check_data(dataset.fingerprint, dataset.name)
            if folder.is_finished:
                print_status(f"The training in {folder.path} is finished.")
            else:
                stored = stored or _load_backbone(config, dataset)
                if replaced := stored.backbone.costs.exits_after:
                    print_status(
                        f"The exits after {list(replaced)} gated layers are replaced by those "
                        f"after {list(config.after)}."
                    )
                add_exits(stored, dataset, config.after, seed=config.seed, device=device)
                accuracies = exit_accuracies(stored, dataset)
                summary = ExitsSummary(exits_after=config.after, val_accuracy=accuracies)
                write_json(folder.path / SUMMARY, config_to_dict(summary))
                save_backbone(stored.backbone, stored.info, folder.path / BACKBONE_FOLDER)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted; continue with: {folder.resume_command}") from None
    stored = load_stored_backbone(folder.path)
    print_result(_table(folder, stored) + "\n")
    constructor = getattr(stored.backbone.config, "constructor", None)
    trust = "" if constructor is None else " --trust-code"
    print_status(
        f"Saved in {folder.path}; train a gate on it with --backbone {folder.path}{trust}."
    )


def add_exits(
    stored: StoredBackbone, dataset: Dataset, after: Sequence[int], *, seed: int, device: str
) -> None:
    """Fit exits to a trained backbone, in place of its present exits; its network stays unchanged.

    The heads learn from the train split, under bits that the seed draws.
    """
    backbone = stored.backbone.to(device)
    backbone.set_exits(after)
    sizes = sum(exit_.macs for exit_ in backbone.costs.exits) // backbone.n_classes
    rounds = max(1, min(_MAX_IMAGES, _MAX_FEATURE_BYTES // (4 * sizes)) // _BATCH)
    batches = itertools.islice(_batches(dataset, seed=seed, device=device), rounds)
    fit_exits(backbone, after, batches, torch_generator(seed, "exits"))


def exit_accuracies(stored: StoredBackbone, dataset: Dataset) -> dict[str, list[float]]:
    """Return the accuracy in percent of every exit on the val split, by the bits of all layers."""
    frozen = stored.backbone.to_inference()
    found = run_exits(frozen, dataset.val.to(frozen.feature_mean.device))
    return {
        str(bits): [records.accuracy for records in of_exits[:-1]]
        for bits, of_exits in zip(frozen.options, found, strict=True)
        if bits in stored.backbone.meaningful_bits
    }


def _batches(dataset: Dataset, *, seed: int, device: str) -> Iterator[Tensor]:
    """Yield batches of augmented train images in shuffled order, without end.

    Activations of plain train images do not suit unseen images: the network has fitted them.
    """
    images = dataset.train.images.to(device)
    size = min(_BATCH, len(images))
    for epoch in itertools.count():
        order = epoch_batches(len(images), size, seed=seed, epoch=epoch)
        for step, rows in enumerate(order):
            draws = torch_generator(seed, "exits augment", epoch, step, device=images.device)
            yield augment(images[rows], draws, flip=dataset.flip)


def _load_backbone(config: TrainExitsConfig, dataset: Dataset) -> StoredBackbone:
    """Return the chosen backbone, after a check that it has the layers of the exits."""
    stored = load_or_train_backbone(config, dataset)
    check_exits(config.after, stored.backbone.costs.n_layers)
    return stored


def _table(run: RunFolder, stored: StoredBackbone) -> str:
    """Return the accuracy of every exit as a text table."""
    accuracies = read_record(run.path / SUMMARY, ExitsSummary).val_accuracy
    costs = stored.backbone.costs
    places = [f"after {exit_.after}".rjust(9) for exit_ in costs.exits]
    rows = ["  ".join([f"{'bits':>4}", *places, f"{'end':>7}"])]
    for bits, values in accuracies.items():
        end = stored.info.accuracy.get(bits)
        cells = [f"{value:9.2f}" for value in values]
        rows.append("  ".join([f"{bits:>4}", *cells, "" if end is None else f"{end:7.2f}"]))
    exit_costs = ", ".join(f"{costs.percent(costs.part_cost(e)):.3g} %" for e in costs.exits)
    rows.append(
        f"Accuracy on val in percent, all layers at the same bits. The exits cost {exit_costs}."
    )
    return "\n".join(rows)
