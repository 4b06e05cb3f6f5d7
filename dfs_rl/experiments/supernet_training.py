"""Training of a supernet, a backbone in which every mix of bit options works."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from dfs_rl.backbones import (
    Backbone,
    BackboneInfo,
    StoredBackbone,
    load_stored_backbone,
    save_backbone,
)
from dfs_rl.backbones.footprint import backward_bytes
from dfs_rl.backbones.registry import network_of
from dfs_rl.costs import FULL
from dfs_rl.data import Dataset, ImageSet, channel_statistics, load_dataset
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.baselines.methods import uniform_points
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.config import create_run
from dfs_rl.experiments.session import RunSession
from dfs_rl.gating.loading import BACKBONE_FOLDER
from dfs_rl.training.custom_model import build_custom_backbone
from dfs_rl.training.supernet import SupernetTrainer, depth_accuracies, uniform_accuracies
from dfs_rl.utils.checkpoint import check_finite
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import NonNegativeInt, config_to_dict
from dfs_rl.utils.device import check_devices, check_memory, resolve_device, set_threads
from dfs_rl.utils.io import write_json
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.seeding import stream_seed
from dfs_rl.utils.signals import StopRequest

SUMMARY = "summary.json"
_COPIES = 6
"""Copies of the weights in memory: weights, gradients, 2 of the optimizer, 2 of the snapshot."""
_WORKER_BYTES = 2**29
"""Memory in bytes of a process that has imported torch and Ray."""


@dataclass(frozen=True, kw_only=True)
class SupernetSummary:
    """Content of ``summary.json`` in a run of ``train_backbone``.

    Attributes:
        val_accuracy: Accuracy in percent on the val split, by the bits that all layers run at.
        points_on_val: Computation and accuracy in percent of each uniform option.
    """

    val_accuracy: dict[str, float]
    points_on_val: tuple[tuple[float, float], ...]


def build(config: TrainBackboneConfig, dataset: Dataset) -> Backbone:
    """Build the backbone of a configuration; the same seed gives the same weights.

    It is untrained unless a user's constructor makes it.
    """
    torch.manual_seed(stream_seed(config.seed, "weights"))
    if config.is_constructed:
        backbone = build_custom_backbone(
            config.backbone,
            dataset,
            weights=config.weights,
            bits=config.bit_options,
            stem_bits=FULL if config.plain else config.stem_bits,
            per_channel=config.per_channel,
        )
        wanted = config.plain or config.is_set("bits")
        if wanted and backbone.options.values != config.bit_options:
            theirs, asked = (
                " ".join(map(str, bits)) for bits in (backbone.options, config.bit_options)
            )
            raise ConfigError(
                f"{config.backbone} returns a backbone with the bit options {theirs}, but asked "
                f"for are {asked}; leave out {'--plain' if config.plain else '--bits'}, or let it "
                "return a model."
            )
        return backbone
    channels, height, width = dataset.image_shape
    network = network_of(config.backbone, config.recipe)
    shape: dict[str, Any] = {
        "in_channels": channels,
        "n_classes": dataset.n_classes,
        "image_size": (height, width),
        "bits": config.bit_options,
        "stem_bits": FULL if config.plain else config.stem_bits,
        "per_channel": config.per_channel,
        "width": config.width,
        **{name: getattr(config, name) for name in network.settings},
    }
    return network.make(channel_statistics(dataset.train.images), **shape)


def make_trainer(config: TrainBackboneConfig, dataset: Dataset) -> SupernetTrainer:
    """Validate every setting against the data and the machine, and return the trainer.

    With several workers it serves validation only, on the CPU; the workers make their own trainers.
    """
    device = resolve_device(config.device)
    check_devices(device, workers=config.workers, gpus=torch.cuda.device_count())
    _check_memory(config, dataset, device)
    return SupernetTrainer(
        build(config, dataset),
        dataset,
        config.training,
        epochs=config.epochs,
        seed=config.seed,
        device=device if config.workers == 1 else torch.device("cpu"),
        recipe=config.recipe,
    )


def _check_memory(config: TrainBackboneConfig, dataset: Dataset, device: torch.device) -> None:
    """Raise ConfigError if network, batch or workers do not fit into memory."""
    needs: dict[str, float] = {}
    if config.workers > 1:
        needs[f"workers is {config.workers}"] = _WORKER_BYTES * config.workers
    if not config.is_constructed:
        with torch.device("meta"):
            network = build(config, dataset)
        weights = sum(weight.nbytes for weight in network.parameters())
        named = "backbone" if config.width is None else "width"
        needs[f"{named} is {getattr(config, named)}"] = _COPIES * weights
        batch = min(config.training.batch_size, len(dataset.train))
        needs[f"training.batch_size is {batch}"] = batch * backward_bytes(network)
    check_memory(needs, device)


def train_supernet(
    config: TrainBackboneConfig,
    trainer: SupernetTrainer,
    dataset: Dataset,
    run: RunFolder,
    *,
    stop: StopRequest | None = None,
) -> StoredBackbone:
    """Train to the end, or resume from the run's last checkpoint; a finished run is only loaded.

    The result is also stored in the run's ``backbone/``. A request to stop, set by Ctrl-C unless
    ``stop`` is given, raises KeyboardInterrupt once everything is saved.
    """
    run.check_data(dataset.fingerprint, dataset.name)
    if run.is_finished:
        print_status(f"The training in {run.path} is finished.")
        return load_stored_backbone(run.path)
    session = RunSession(run, Progress)
    progress = session.state or Progress()
    if session.checkpoint is not None:
        trainer.restore(session.checkpoint.tensors, progress.epoch, progress.step)
        check_finite(trainer.backbone, f"the checkpoint in {run.checkpoint_dir}")
    val_subset = dataset.val.subset(torch.arange(min(config.eval_images, len(dataset.val)))).to(
        trainer.device
    )
    session.open_board(purge_step=progress.epoch + 1)
    with session.running(stop) as stopping:
        while progress.epoch < config.epochs:
            progress = _train_epoch(trainer, progress, stopping, total=config.epochs)
            if progress.step == 0:
                _log_epoch(session, progress, trainer.snapshot(), val_subset, total=config.epochs)
                progress = Progress(epoch=progress.epoch)
            session.save(trainer.tensors(), config_to_dict(progress))
            if stopping.requested:
                raise KeyboardInterrupt(
                    f"Stopped after {progress.epoch} of {config.epochs} epochs; everything is "
                    f"saved. Go on with: {run.resume_command}"
                )
    backbone = trainer.finish()
    val = dataset.val.to(trainer.device)
    info = BackboneInfo.of(dataset, uniform_accuracies(backbone, val))
    if config.recipe == "elastic":
        info = replace(info, depth_accuracy=depth_accuracies(backbone, val))
    save_backbone(backbone, info, run.path / BACKBONE_FOLDER)
    return StoredBackbone(backbone=backbone, info=info)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Completed epochs and steps of a training, with sums of losses over the current epoch."""

    epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    labels: float = 0.0
    distillation: float = 0.0
    metrics: NonNegativeInt = 0  # number of records logged; set by the session


def _train_epoch(
    trainer: SupernetTrainer, progress: Progress, stop: StopRequest, *, total: int
) -> Progress:
    """Run the rest of an epoch, or up to a request to stop; a complete epoch returns step 0."""
    labels, distillation = progress.labels, progress.distillation
    with tqdm(
        desc=f"epoch {progress.epoch + 1}/{total}",
        total=trainer.steps_per_epoch,
        initial=progress.step,
        unit="step",
        disable=None,  # only on terminals; the line per epoch remains
        leave=False,
    ) as bar:
        for losses in trainer.train_epoch():
            labels += losses.labels
            distillation += losses.distillation or 0.0
            bar.update()
            bar.set_postfix(loss=f"{losses.labels:.3f}", refresh=False)
            if stop.requested:
                break
    if trainer.step == 0:
        n = trainer.steps_per_epoch
        labels, distillation = labels / n, distillation / n
    return Progress(
        epoch=trainer.epoch, step=trainer.step, labels=labels, distillation=distillation
    )


def _log_epoch(
    session: RunSession[Progress],
    progress: Progress,
    backbone: Backbone,
    images: ImageSet,
    *,
    total: int,
) -> None:
    """Log mean losses of an epoch and the accuracy of each uniform option on val images."""
    accuracies = uniform_accuracies(backbone, images)
    figures = {
        "loss/labels": progress.labels,
        "loss/distillation": progress.distillation,
        **{f"val_accuracy/{bits}_bit": value for bits, value in accuracies.items()},
    }
    reached = {"progress": progress.epoch / total, "points": uniform_points(backbone, accuracies)}
    session.log({"kind": "epoch", "epoch": progress.epoch, **reached, **figures})
    session.writer.scalars(figures, progress.epoch)
    shown = ", ".join(f"{bits} bit {value:.1f} %" for bits, value in accuracies.items())
    tqdm.write(
        f"epoch {progress.epoch}: loss {progress.labels:.3f}, val accuracy {shown}", file=sys.stderr
    )


def run(invocation: Invocation[TrainBackboneConfig]) -> None:
    """Train a backbone, unless the run is finished, and print its accuracy."""
    config = invocation.config
    set_threads(config.threads, resumed=invocation.resume is not None)
    dataset = load_dataset(config.dataset, image_size=config.image_size, flip=config.flip)
    if config.image_size is not None:
        size = f"{config.image_size} x {config.image_size} pixels"
        print_status(f"Images are resized and cropped to {size}.")
    folder, stored = train_run(
        config, dataset, resume=invocation.resume, command=invocation.command
    )
    sys.stdout.write(_table(stored, n_images=len(dataset.val)) + f"\nSaved in {folder.path}\n")


def train_run(
    config: TrainBackboneConfig,
    dataset: Dataset,
    *,
    resume: RunFolder | None = None,
    command: tuple[str, ...],
    after_log: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[RunFolder, StoredBackbone]:
    """Train a backbone in a new run folder, or resume its training.

    ``after_log`` receives each record of the metrics.
    """
    if resume is not None:  # before a network is built for other images
        resume.check_data(dataset.fingerprint, dataset.name)
    trainer, name = make_trainer(config, dataset), config.backbone.replace(":", "-")
    run = resume or create_run(config, name, command=command, fingerprint=dataset.fingerprint)
    run = replace(run, after_log=after_log)
    try:
        with run.lock():
            if config.workers > 1 and not run.is_finished:
                from dfs_rl.experiments.worker_training import train_with_workers

                train_with_workers(config, dataset, run)
                stored = load_stored_backbone(run.path)
            else:
                stored = train_supernet(config, trainer, dataset, run)
            write_summary(run, stored)
    except KeyboardInterrupt as stopped:
        text = str(stopped) or f"Interrupted; go on with: {run.resume_command}"
        raise KeyboardInterrupt(text) from None
    return run, stored


def write_summary(run: RunFolder, stored: StoredBackbone) -> None:
    """Write computation and val accuracy of the uniform options into a run's folder."""
    accuracies = dict(stored.info.accuracy)
    points = uniform_points(stored.backbone, accuracies)
    summary = SupernetSummary(
        val_accuracy=accuracies,
        points_on_val=tuple((point.computation, point.accuracy) for point in points),
    )
    write_json(run.path / SUMMARY, config_to_dict(summary))


def _table(stored: StoredBackbone, *, n_images: int) -> str:
    """Return the accuracy of every uniform option, and of nested depths, as a text table."""
    accuracies, backbone = stored.info.accuracy, stored.backbone
    rows = [f"{'bits':>4}  {'accuracy on val %':>17}  {'computation %':>13}"]
    for bits, point in zip(accuracies, uniform_points(backbone, accuracies), strict=True):
        rows.append(f"{bits:>4}  {point.accuracy:17.2f}  {point.computation:13.2f}")
    for depth, by_bits in stored.info.depth_accuracy.items():
        layers, n = "-".join(map(str, backbone.stages)), len(backbone.stages)
        rows.append(f"the first {depth} of the {layers} layers of {n} stages, the others skipped:")
        for bits, accuracy in by_bits.items():
            mix = backbone.at_depths([int(d) for d in depth.split("-")], int(bits))
            options = torch.tensor([backbone.options.indices(mix)])
            computation = backbone.costs.computation(options).item()
            rows.append(f"{bits:>4}  {accuracy:17.2f}  {computation:13.2f}")
    rows.append(
        f"{n_images} images; computation counts MACs x (bits / 32)^2, stem and head included."
    )
    return "\n".join(rows)
