"""Sub-networks of one adaptive-depth network against separately trained ones of equal depth.

    python benchmarks/bench_adn.py --dataset digits --epochs 60 --seeds 0 1 2 3 4

Kang et al. (NeurIPS 2024) claim that the sub-networks of one network, most of which no training
step runs, are as good as networks trained separately. For each seed one network is trained with the
recipe ``adn``, and for each of its 2^stages combinations of paths another with labels alone, from
the same initial weights, for the same number of epochs and with the same settings; nothing is
quantized. The accuracy is measured on the test split, with the running statistics of training. Each
accuracy is printed on stderr once known, the table at the end. ``--save`` stores the first seed's
network of adaptive depth for ``train_agent --backbone``.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch

from dfs_rl.backbones import BackboneInfo, save_backbone
from dfs_rl.costs import FULL, SKIP
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.experiments.backbone_config import TrainBackboneConfig
from dfs_rl.experiments.supernet_training import build
from dfs_rl.training.bit_sampling import BitMix
from dfs_rl.training.supernet import (
    SupernetTrainer,
    accuracy_of,
    uniform_accuracies,
)
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.logging import print_status


def train(
    config: TrainBackboneConfig, dataset: Dataset, *, alone: BitMix | None = None
) -> SupernetTrainer:
    """Train with the recipe ``adn``, or one sub-network alone with labels."""
    trainer = SupernetTrainer(
        build(config, dataset),
        dataset,
        config.training,
        epochs=config.epochs,
        seed=config.seed,
        device=torch.device(config.device),
        recipe="adn" if alone is None else "supernet",  # labels alone without quantization
    )
    if alone is not None:
        trainer.full = alone
    while trainer.epoch < trainer.epochs:
        for _ in trainer.train_epoch():
            pass
    return trainer


def mega_macs(config: TrainBackboneConfig, dataset: Dataset, mix: BitMix) -> float:
    """Return the million MACs of a sub-network per image, stem and head included."""
    costs = build(config, dataset).costs
    run = (macs for macs, bits in zip(costs.layer_macs, mix, strict=True) if bits != SKIP)
    return (sum(run) + sum(part.macs for part in costs.fixed)) / 1e6


def ran(mix: BitMix) -> str:
    """Return the paths that run as text, one mark for each."""
    return "".join("-" if bits == SKIP else "x" for bits in mix)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation as text."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main() -> None:
    """Measure, print a table and one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--backbone", default="resnet14")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patch", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--feature-weight", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(1)

    dataset = load_dataset(flags.dataset)
    shared: dict[BitMix, list[float]] = {}
    alone: dict[BitMix, list[float]] = {}
    began = time.process_time()
    for seed in flags.seeds:
        config = TrainBackboneConfig(
            dataset=flags.dataset,
            recipe="adn",
            plain=True,
            backbone=flags.backbone,
            width=flags.width,
            epochs=flags.epochs,
            seed=seed,
            device=flags.device,
            patch=flags.patch,
            training=SupernetConfig(
                batch_size=flags.batch_size,
                learning_rate=flags.learning_rate,
                feature_weight=flags.feature_weight,
            ),
        )
        trainer = train(config, dataset)
        adaptive = trainer.snapshot()
        test = dataset.test.to(trainer.device)
        mixes = sorted(itertools.product((SKIP, FULL), repeat=len(adaptive.blocks)), reverse=True)
        for mix in mixes:
            accuracy = accuracy_of(adaptive, test, mix)
            shared.setdefault(mix, []).append(accuracy)
            print_status(f"seed {seed}, {ran(mix)}, one network: {accuracy:.2f} %")
        if flags.save and seed == flags.seeds[0]:
            backbone = trainer.finish()
            info = BackboneInfo(
                dataset=dataset.name,
                fingerprint=dataset.fingerprint,
                class_names=dataset.class_names,
                accuracy=uniform_accuracies(backbone, dataset.val.to(trainer.device)),
            )
            save_backbone(backbone, info, flags.save)
        for mix in mixes:
            single = train(config, dataset, alone=mix).snapshot()
            accuracy = accuracy_of(single, test, mix)
            alone.setdefault(mix, []).append(accuracy)
            print_status(f"seed {seed}, {ran(mix)}, trained separately: {accuracy:.2f} %")

    print("| paths that run | million MACs | one network, % | trained separately, % | difference |")
    print("|---|---|---|---|---|")
    for mix in sorted(shared, key=lambda mix: mega_macs(config, dataset, mix)):
        macs = mega_macs(config, dataset, mix)
        differences = [a - b for a, b in zip(shared[mix], alone[mix], strict=True)]
        print(
            f"| {ran(mix)} | {macs:.2f} | {spread(shared[mix])} | {spread(alone[mix])} "
            f"| {spread(differences)} |"
        )
    record = {
        "dataset": flags.dataset,
        "test_images": len(dataset.test),
        "backbone": flags.backbone,
        "width": flags.width,
        "patch": flags.patch,
        "epochs": flags.epochs,
        "batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate,
        "feature_weight": flags.feature_weight,
        "seeds": flags.seeds,
        "one_network": {str(s): v for s, v in shared.items()},
        "trained_separately": {str(s): v for s, v in alone.items()},
        "cpu_minutes": round((time.process_time() - began) / 60, 1),
        "torch": torch.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
