"""Gates that are trained for latency and for computation, at equal milliseconds.

    python benchmarks/latency_training.py
    python benchmarks/latency_training.py --backbone runs/exits --dataset uoft-cs/cifar10

The backbone is measured once. For each seed PPO trains a gate for all cost weights with ``--cost
latency`` and one with ``--cost computation``. Each is then run at several preferences, and the
profile gives the milliseconds of its images, whatever it was trained for. At each budget in
milliseconds the preference with the highest accuracy on val is taken, and its accuracy on test is
reported; the same for cascades and uniform options, which train nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro

import dfs_rl
from dfs_rl.backbones import PRETRAINED_DIGITS, InferenceBackbone, load_backbone
from dfs_rl.costs.latency_profile import Runtime, read_latency_profile
from dfs_rl.data import Dataset, ImageSet, load_dataset
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.pass_outputs import run_uniform
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.rule_search import search_rules
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import RuleGate
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import write_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        backbone: Folder of a backbone; the included digits network by default.
        dataset: Its data set.
        runtime: Library whose latency counts.
        profile: Profile of the backbone; it is measured by default.
        timesteps: Decisions that each gate learns from.
        seeds: Number of seeds.
        budgets: Number of budgets.
        preferences: Number of preferences at which a gate is run.
        out: Folder to keep the runs in; they are deleted by default.
    """

    backbone: Path = PRETRAINED_DIGITS
    dataset: str = "digits"
    runtime: Runtime = "onnx"
    profile: Path | None = None
    timesteps: int = 600_000
    seeds: int = 3
    budgets: int = 6
    preferences: int = 33
    out: Path | None = None


@dataclass(frozen=True)
class Choice:
    """A method at one setting: milliseconds and accuracy in percent on val, accuracy on test."""

    milliseconds: float
    val: float
    test: float


class Bench:
    """The measured network on its data."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.data: Dataset = load_dataset(settings.dataset)
        trained = load_backbone(settings.backbone)
        self.backbone: InferenceBackbone = trained.to_inference()
        self.profile_path = folder / "profile.json"
        if settings.profile is None:
            profile = dfs_rl.profile(trained, runtime=settings.runtime, batch_sizes=(1,))
        else:
            profile = read_latency_profile(settings.profile)
        write_json(self.profile_path, config_to_dict(profile))
        self.costs = self.backbone.costs.with_cost_model("latency", profile)

    def run(self, gate: Gate, images: ImageSet, at: float | None = None) -> GateRecords:
        """Return the records of a gate at a preference."""
        preferences = None if at is None else torch.full((len(images),), at)
        return evaluate_gate(self.backbone, gate, images, preferences=preferences)

    def choice(self, gate: Gate, at: float | None = None) -> Choice:
        """Return a gate at a preference."""
        val, test = (self.run(gate, images, at) for images in (self.data.val, self.data.test))
        return Choice(self.milliseconds(val), val.accuracy, test.accuracy)

    def milliseconds(self, records: GateRecords) -> float:
        """Return the mean time of an image."""
        return float(records.computation(self.costs).mean()) / 100 * self.costs.total_cost

    def trained(self, cost: str, seed: int) -> list[Choice]:
        """Train a gate for all cost weights, and return it at every preference."""
        latency = {"profile": str(self.profile_path)} if cost == "latency" else {}
        gate = dfs_rl.train_gate(
            str(self.settings.backbone),
            self.data,
            cost=cost,
            latency=latency,
            timesteps=self.settings.timesteps,
            seed=seed,
            run_dir=self.folder / f"{cost}-{seed}",
        )
        network = gate.load().gate
        grid = np.linspace(0.0, 1.0, self.settings.preferences)
        return [self.choice(network, float(at)) for at in grid]

    def uniform(self) -> list[Choice]:
        """Return the uniform options."""
        layers, options = self.costs.n_layers, self.backbone.options
        return [self.choice(TableGate((o,) * layers, options=options)) for o in range(len(options))]

    def cascades(self, budgets: np.ndarray) -> list[Choice]:
        """Return the best cascade on val within each budget."""
        outputs, plain = (
            run_uniform(self.backbone, self.data.val),
            PassSettings(limit=2, answer="last"),
        )
        percent = (100 * budgets / self.costs.total_cost).tolist()
        return [
            self.choice(RuleGate([found.rule], answer="last", options=self.backbone.options))
            for found in search_rules(outputs, self.costs, percent, plain)
            if found is not None
        ]


def at_budget(choices: list[Choice], budget: float) -> float:
    """Return the accuracy on test of the best choice on val within a budget; NaN if none fits."""
    within = [choice for choice in choices if choice.milliseconds <= budget]
    return max(within, key=lambda choice: choice.val).test if within else float("nan")


def main(settings: Settings) -> None:
    """Train, and print the accuracy at each budget."""
    with TemporaryDirectory() as temporary:
        bench = Bench(settings, settings.out or Path(temporary))
        uniform = bench.uniform()
        gates = {
            cost: [bench.trained(cost, seed) for seed in range(settings.seeds)]
            for cost in ("latency", "computation")
        }
    times = [choice.milliseconds for seeds in gates.values() for one in seeds for choice in one]
    least, most = min(times), max(*times, *(choice.milliseconds for choice in uniform))
    budgets = np.geomspace(1.02 * least, most, settings.budgets)
    rows = {
        cost: np.array([[at_budget(one, budget) for budget in budgets] for one in seeds])
        for cost, seeds in gates.items()
    }
    rows["uniform"] = np.array([[at_budget(uniform, budget) for budget in budgets]])
    cascades = bench.cascades(budgets)
    rows["cascade"] = np.array([[at_budget(cascades, budget) for budget in budgets]])
    print(json.dumps({"n_test": len(bench.data.test), "seeds": settings.seeds}))
    print(json.dumps({"uniform_ms": [round(choice.milliseconds, 4) for choice in uniform]}))
    print("ms          ", *(f"{budget:12.3f}" for budget in budgets))
    for name, values in rows.items():
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(budgets))
        cells = zip(values.mean(axis=0), spread, strict=True)
        print(f"{name:12}", *(f"{mean:6.2f} ±{deviation:4.2f}" for mean, deviation in cells))
    gain = rows["latency"] - rows["computation"]
    print("latency less computation, per seed:", gain.round(2).tolist())


if __name__ == "__main__":
    main(tyro.cli(Settings))
