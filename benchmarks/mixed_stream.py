"""Gates that are tuned on clean images and on a stream of mixed difficulty, tried on both.

    python benchmarks/mixed_stream.py --backbone runs/supernet --dataset uoft-cs/cifar10
    python benchmarks/mixed_stream.py --budgets 0.5 0.9 --timesteps 100000 --seeds 1

In the stream images are corrupted at several strengths, or clean, see ``dfs_rl.data.corruptions``;
the backbone has seen clean images alone. A confidence cascade is chosen for each budget and PPO
trains a gate for all budgets, once on the clean splits agent and val and once on the stream's. Each
is then run on both test splits: which keeps its budget, which its accuracy?
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

import dfs_rl
from dfs_rl.backbones import PRETRAINED_DIGITS
from dfs_rl.data import Dataset, load_dataset
from dfs_rl.evaluation.summary import MethodSummary
from dfs_rl.experiments.api import TrainedGate
from dfs_rl.experiments.config import EvaluateConfig
from dfs_rl.experiments.evaluation import EvaluationCache, evaluate_run
from dfs_rl.utils.constants import Corruptions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        backbone: Run of train_backbone; the included digits network by default.
        dataset: Its data set.
        corruptions: Stream to compare with clean images.
        budgets: Budgets in percent.
        timesteps: Decisions that each PPO gate learns from.
        seeds: Number of PPO trainings per stream.
        out: Folder to keep the runs in; they are deleted by default.
    """

    backbone: Path = PRETRAINED_DIGITS
    dataset: str = "digits"
    corruptions: Corruptions = "mixed"
    budgets: tuple[float, ...] = (0.6, 1.0, 1.5)
    timesteps: int = 600_000
    seeds: int = 3
    out: Path | None = None


class Bench:
    """The data sets, and the folder of the runs."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        clean = load_dataset(settings.dataset)
        stream = load_dataset(settings.dataset, corruptions=settings.corruptions)
        self.streams: dict[Corruptions, Dataset] = {"none": clean, settings.corruptions: stream}
        self.cache = EvaluationCache()

    def gates(self, tuned: Corruptions) -> Iterator[tuple[str, float, list[TrainedGate]]]:
        """Yield method, budget and gates of each row for one stream that they are tuned on."""
        backbone, data = str(self.settings.backbone), self.streams[tuned]
        for budget in self.settings.budgets:
            place = self.folder / f"cascade-{tuned}-{budget:g}"
            cascade = dfs_rl.train_gate(
                backbone, data, method="cascade", budget=budget, run_dir=place
            )
            yield "cascade", budget, [cascade]
        trained = [
            dfs_rl.train_gate(
                backbone,
                data,
                timesteps=self.settings.timesteps,
                seed=seed,
                run_dir=self.folder / f"ppo-{tuned}-{seed}",
            )
            for seed in range(self.settings.seeds)
        ]
        for budget in self.settings.budgets:
            yield "ppo", budget, trained

    def results(self, gate: TrainedGate, on: Corruptions, budget: float) -> list[MethodSummary]:
        """Return the figures of a gate on the test split of a stream, and of the uniform options.

        A gate whose cheapest point is above the budget is set to that point.
        """
        least = math.ceil(1e4 * min(computation for computation, _ in gate.points)) / 1e4
        config = EvaluateConfig(
            run=gate.path,
            corruptions=on,
            budget=max(budget, least) if len(gate.points) > 1 else None,
        )
        evaluation = evaluate_run(config, self.streams[on], baselines=["uniform"], cache=self.cache)
        return [m for m in evaluation.summary.methods if m.role in ("gate", "fixed")]


def cells(seeds: list[MethodSummary]) -> str:
    """Return mean computation and accuracy over seeds, with the standard deviation, as cells."""
    columns = [[m.computation for m in seeds], [m.accuracy for m in seeds]]
    texts = []
    for values, digits in zip(columns, (3, 2), strict=True):
        deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        texts.append(f"{statistics.mean(values):.{digits}f}{deviation}")
    return " | ".join(texts)


def main(settings: Settings) -> None:
    """Train, and print one table."""
    rows: dict[tuple[str, str, str], dict[str, list[MethodSummary]]] = {}
    with TemporaryDirectory() as temporary:
        bench = Bench(settings, settings.out or Path(temporary))
        for tuned in bench.streams:
            for method, budget, gates in bench.gates(tuned):
                for gate, on in itertools.product(gates, bench.streams):
                    for result in bench.results(gate, on, budget):
                        is_gate = result.role == "gate"
                        row = (method, tuned, f"{budget:g}") if is_gate else (result.label, "", "")
                        seeds = rows.setdefault(row, {}).setdefault(on, [])
                        if is_gate or not seeds:  # uniform options are the same for every gate
                            seeds.append(result)
    n = len(bench.streams["none"].test)
    print(f"Test n {n:,}, PPO {settings.seeds} seeds of {settings.timesteps:,} timesteps.")
    on = ["clean", settings.corruptions]
    heads = [f"{name}: computation, % | accuracy, %" for name in on]
    print(f"| method | tuned on | budget, % | {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for row, found in rows.items():
        print(f"| {' | '.join([*row, *map(cells, found.values())])} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
