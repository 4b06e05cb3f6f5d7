"""Gates of several passes against rules and single passes, at equal budgets.

    python benchmarks/passes.py --backbone runs/supernet --dataset uoft-cs/cifar10
    python benchmarks/passes.py --budgets 0.6 0.9 --timesteps 100000 --seeds 1
    python benchmarks/passes.py --seeds 0

The best plain cascade of two passes, the best tuned rule over the same passes as the gate's, the
best fitted rule over them, and PPO gates over one and over several passes, each trained once for
all budgets, are set to each budget on the val split and run on the test split. The learned gate is
shown also where rules would ship in its place. Differences are over images, those of the fitted
rule to the tuned rule and those of gates to the cascade; means are over seeds.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch
import tyro
from torch import Tensor

import dfs_rl
from dfs_rl.backbones import PRETRAINED_DIGITS, load_backbone
from dfs_rl.data import ImageSet, load_dataset
from dfs_rl.evaluation.budget_conditioning import calibrate_budget_conditioning
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.pass_outputs import PassOutputs, rule_settings, run_settings
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.rule_search import best_rule
from dfs_rl.experiments.rule_gates import LEARNED_FOLDER
from dfs_rl.gating.loading import GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import PassSettings, passes_of
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import StoredGate, load_gate
from dfs_rl.reporting.tables import aligned_table
from dfs_rl.utils.constants import Stopping


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        backbone: Run of train_backbone; the included digits network by default.
        dataset: Its data set.
        budgets: Budgets on the mean computation in percent.
        passes: Largest number of passes of the gate.
        timesteps: Decisions that each gate learns from.
        seeds: Number of trainings of each gate; 0 compares the rules alone.
        single_pass: Train gates of a single pass as well.
        out: Folder to keep the runs in.
    """

    backbone: Path = PRETRAINED_DIGITS
    dataset: str = "digits"
    budgets: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 3.0)
    passes: int = 3
    timesteps: int = 1_200_000
    seeds: int = 3
    single_pass: bool = True
    out: Path | None = None


class Contest:
    """Methods on one backbone, set to budgets on val and run on test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data = load_dataset(settings.dataset)
        folder = settings.backbone
        stored = folder / "backbone" if (folder / "backbone").is_dir() else folder
        self.backbone = load_backbone(stored).to_inference()
        self.costs = self.backbone.costs
        self.out = Path(mkdtemp()) if settings.out is None else settings.out
        settings = rule_settings(self.backbone, self.data.val, mirrored=self.data.flip)
        self.agent, self.val, self.test = (
            run_settings(self.backbone, images, settings)
            for images in (self.data.agent, self.data.val, self.data.test)
        )

    def rules(
        self,
        passes: PassSettings,
        chosen_on: PassOutputs,
        *,
        n_costed: int | None = None,
        stopping: Stopping = "confidence",
    ) -> list[GateRecords | None]:
        """Return the records on test of the best rule on other images, at each budget."""
        found = [
            best_rule(chosen_on, self.costs, b, passes, n_costed=n_costed, stopping=stopping)
            for b in self.settings.budgets
        ]
        return [
            None if one is None else self.test.records(one.rule, passes.answer, name="rule")
            for one in found
        ]

    def train(self, seed: int, passes: int) -> list[StoredGate]:
        """Train a gate, unless its run is there; return what ships and what was learned."""
        run = self.out / f"passes-{passes}-{seed}"
        if not (run / "training.json").exists():
            dfs_rl.train_gate(
                self.settings.backbone,
                self.data,
                method="ppo",
                passes=passes,
                timesteps=self.settings.timesteps,
                seed=seed,
                run_dir=run,
                threads=1,
            )
        return [
            load_gate(run / name) for name in (GATE_FOLDER, LEARNED_FOLDER) if (run / name).exists()
        ]

    def at_budgets(self, gate: StoredGate) -> list[GateRecords | None]:
        """Return the records of a gate on test at each budget, ``None`` where it costs more."""
        assert isinstance(gate, LearnedGate | RuleGate)
        if isinstance(gate, LearnedGate):
            measured = calibrate_budget_conditioning(self.backbone, gate, self.data.val)
            gate.budget_conditioning = measured
        assert gate.budget_conditioning is not None
        least, _ = gate.budget_conditioning.budget_range
        found: list[GateRecords | None] = []
        for budget in self.settings.budgets:
            if budget < least:
                found.append(None)
                continue
            gate.preference = gate.budget_conditioning.preference_for_budget(budget)
            found.append(self._evaluate(gate, self.data.test))
        return found

    def _evaluate(self, gate: StoredGate, images: ImageSet) -> GateRecords:
        if isinstance(gate, RuleGate):
            return self.test.records(gate.rule, gate.passes.answer, name="rule")
        return evaluate_gate(self.backbone, gate, images)


def _cell(records: list[GateRecords], baseline: list[GateRecords] | None, contest: Contest) -> str:
    """Return accuracy and cost, and the difference to a baseline on the same images."""
    accuracy = torch.tensor([each.accuracy for each in records])
    costs = [each.computation(contest.costs).mean().item() for each in records]
    text = f"{accuracy.mean():.2f} at {sum(costs) / len(costs):.3f} %"
    if len(records) > 1:
        text += f", s {accuracy.std():.2f}"
    if baseline is None:
        return text
    gains: Tensor = torch.stack(
        [a.correct.double() - b.correct.double() for a, b in zip(records, baseline, strict=True)]
    )
    mean = 100.0 * gains.mean(dim=0)  # over seeds, [n]
    return f"{text}: {mean.mean():+.2f} ± {mean.std() / len(mean) ** 0.5:.2f}"


def main(settings: Settings) -> None:
    """Run the contest and print one table."""
    contest = Contest(settings)
    seeds = range(settings.seeds)
    cascade = contest.rules(PassSettings(limit=2, answer="last"), contest.val)
    gates: dict[str, list[list[GateRecords | None]]] = {}
    for seed in seeds:
        shipped, learned = contest.train(seed, settings.passes)
        gates.setdefault("gate that ships", []).append(contest.at_budgets(shipped))
        gates.setdefault("learned gate", []).append(contest.at_budgets(learned))
        if settings.single_pass:
            (single,) = contest.train(seed, 1)
            gates.setdefault("single-pass gate", []).append(contest.at_budgets(single))
    answer = passes_of(learned).answer if settings.seeds else "mean"
    allowed = PassSettings(limit=settings.passes, mirrored=contest.data.flip, answer=answer)
    both, n = contest.val.with_images(contest.agent), len(contest.val)
    tuned = contest.rules(allowed, both, n_costed=n)
    fitted = contest.rules(allowed, both, n_costed=n, stopping="gain")
    rows = []
    for i, budget in enumerate(settings.budgets):
        row = [f"{budget:g} %"]
        for fixed, other in ((cascade, None), (tuned, None), (fitted, tuned)):
            own, baseline = fixed[i], None if other is None else other[i]
            compared = None if baseline is None else [baseline]
            row.append("none" if own is None else _cell([own], compared, contest))
        own_cascade = cascade[i]
        for each in gates.values():
            own_seeds = [records[i] for records in each]
            there = [one for one in own_seeds if one is not None]
            baseline = None if own_cascade is None else [own_cascade] * len(there)
            row.append(_cell(there, baseline, contest) if len(there) == len(seeds) else "none")
        rows.append(row)
    header = ("budget", "cascade of two passes", "tuned rule", "fitted rule", *gates)
    print(aligned_table(header, [rows]))
    print(f"test n {len(contest.test)}, answer {answer}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
