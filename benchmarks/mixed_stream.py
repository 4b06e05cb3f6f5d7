"""Gates that are tuned on clean images and on a stream of mixed difficulty, tried on both.

    python benchmarks/mixed_stream.py --backbone runs/supernet --dataset uoft-cs/cifar10
    python benchmarks/mixed_stream.py --budgets 0.6 0.9 --timesteps 100000 --seeds 1

In the stream images are corrupted at several strengths, or clean, see ``dfs_rl.data.corruptions``;
the backbone has seen clean images alone. A cascade and PPO gates of one and of several
passes, each for all budgets, are tuned once on the clean splits agent and val and once on those of
the stream, and run on both test splits: which keeps its budget, which its accuracy?
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

import dfs_rl
from dfs_rl.backbones import PRETRAINED_DIGITS
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.summary import MethodSummary
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
        budgets: Budgets in percent; a gate that cannot be as cheap is set to its cheapest point.
        passes: Largest numbers of passes of the PPO gates.
        timesteps: Decisions that each PPO gate learns from.
        seeds: Number of PPO trainings per stream.
        out: Folder to keep the runs in; they are deleted by default.
    """

    backbone: Path = PRETRAINED_DIGITS
    dataset: str = "digits"
    corruptions: Corruptions = "mixed"
    budgets: tuple[float, ...] = (0.6, 1.0, 1.5)
    passes: tuple[int, ...] = (1, 3)
    timesteps: int = 600_000
    seeds: int = 3
    out: Path | None = None

    def trainings(self) -> dict[str, list[dict[str, Any]]]:
        """Return the settings of each method's trainings, one per seed."""
        ppo = {
            f"ppo, passes {passes}": [
                {"passes": passes, "timesteps": self.timesteps, "seed": seed}
                for seed in range(self.seeds)
            ]
            for passes in self.passes
        }
        return {"cascade": [{"method": "cascade"}], **ppo}


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
    names: tuple[Corruptions, ...] = ("none", settings.corruptions)
    streams = {name: load_dataset(settings.dataset, corruptions=name) for name in names}
    rows: dict[tuple[str, str, str], dict[str, list[MethodSummary]]] = {}
    cache = EvaluationCache()
    with TemporaryDirectory() as temporary:
        trainings = settings.trainings()
        for tuned, method in itertools.product(streams, trainings):
            for number, chosen in enumerate(trainings[method]):
                gate = dfs_rl.train_gate(
                    str(settings.backbone),
                    streams[tuned],
                    run_dir=(settings.out or Path(temporary)) / f"{method}-{tuned}-{number}",
                    **chosen,
                )
                least = math.ceil(1e4 * min(cost for cost, _ in gate.points)) / 1e4
                for on, budget in itertools.product(streams, settings.budgets):
                    asked = EvaluateConfig(run=gate.path, corruptions=on, budget=max(budget, least))
                    found = evaluate_run(asked, streams[on], baselines=["uniform"], cache=cache)
                    own, *others = found.summary.methods
                    of_row = rows.setdefault((method, tuned, f"{budget:g}"), {})
                    of_row.setdefault(on, []).append(own)
                    for uniform in others:  # the same for every gate
                        rows.setdefault((uniform.label, "", ""), {})[on] = [uniform]
    print(
        f"Test n {len(streams['none'].test):,}, {settings.timesteps:,} timesteps, "
        f"{settings.seeds} seeds with standard deviations."
    )
    heads = [f"on {name}: computation, % | accuracy, %" for name in names]
    print(f"| method | tuned on | budget, % | {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row[1:]):  # by stream and budget, uniform options first
        print(f"| {' | '.join([*row, *(cells(rows[row][on]) for on in names)])} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
