"""Tuned rules over several passes: cascades, and the start of a gate."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from dfs_rl.agents.validation import rewards_of
from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.metrics import Z_95
from dfs_rl.evaluation.pass_outputs import PassOutputs, rule_settings, run_settings
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.tuned_rules import tuned_gate
from dfs_rl.experiments.budgets import check_highest_budget
from dfs_rl.experiments.search_config import TrainCascadeConfig
from dfs_rl.experiments.session import TrainingRecord, training_record
from dfs_rl.gating.budget_conditioning import BudgetConditioning, preference_grid
from dfs_rl.gating.loading import GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import load_gate, save_gate
from dfs_rl.reporting.tables import aligned_table
from dfs_rl.utils.constants import AnswerRule, Stopping
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder

LEARNED_FOLDER = "learned"
"""Sub-folder of a run with the learned gate, also where the tuned rules ship."""
_N_PREFERENCES = 33
"""Number of preferences that a rule is chosen for."""
_N_COMPARED = 9
"""Number of preferences at which gate and rules are compared."""
_MOST_ROWS = 10
"""Largest number of rules that the table shows."""


class TunedRules:
    """Rules over the passes that a gate may run, tuned on the agent and val splits.

    The backbone is in inference form. The rules run at most ``limit`` passes, also on the mirror
    image if ``mirrored``; an ``answer`` of ``None`` chooses the best one. There are rules for all
    budgets, or the best one within a ``budget`` on the mean computation in percent, which must
    suffice for the cheapest pass. A ``stopping`` of ``None`` is by gain only if that is
    significantly better on val, where rules that are tuned on halves of the agent split compete.

    Attributes:
        by_confidence: The rules that stop by confidence.
        gate: The rules with the chosen stopping.
        gain: Where both kinds are compared, accuracy on val of rules that stop by predicted gains
            minus that of rules by confidence at equal cost: ``difference`` in points, ``error``.
    """

    def __init__(
        self,
        backbone: GatedBackbone,
        dataset: Dataset,
        *,
        limit: int,
        mirrored: bool,
        answer: AnswerRule | None,
        budget: float | None = None,
        stopping: Stopping | None = "confidence",
    ) -> None:
        device = backbone.feature_mean.device
        self.costs = backbone.costs
        self._val_images = dataset.val.to(device)
        settings = rule_settings(backbone, self._val_images, mirrored=mirrored)
        n = len(dataset.agent) + len(dataset.val)
        print_status(f"Running {len(settings)} settings of a pass on {n:,} images ...")
        agent = run_settings(backbone, dataset.agent.to(device), settings)
        self._val = run_settings(backbone, self._val_images, settings)
        self._searched = self._val.with_images(agent)
        candidates = [
            PassSettings(limit=limit, mirrored=mirrored, answer=each)
            for each in (get_args(AnswerRule) if answer is None else (answer,))
        ]
        print_status("Searching rules over these settings ...")

        def tune(candidates: Sequence[PassSettings], stopping: Stopping) -> RuleGate:
            outputs = agent, self._val, self.costs
            gate = tuned_gate(*outputs, candidates, budget=budget, stopping=stopping)
            assert gate is not None, "the cheapest pass is within the budget"
            return gate

        self.gate = self.by_confidence = tune(candidates, "confidence")
        # The rules may need fewer passes or views than the gate is allowed.
        self.settings = replace(candidates[0], answer=self.gate.passes.answer)
        self.gain: dict[str, float] | None = None
        if stopping is None and limit > 1:
            stopping = self._better_stopping(agent)
        if stopping == "gain" and limit > 1:
            print_status("Searching rules that stop by predicted gains ...")
            self.gate = tune([self.settings], "gain")

    def _better_stopping(self, agent: PassOutputs) -> Stopping:
        """Return the kind of stopping that is better on val, by rules that val did not choose."""
        print_status("Comparing rules that stop by confidence and by predicted gains ...")
        half = len(agent) // 2
        parts = agent.images(slice(half)), agent.images(slice(half, None))
        by_confidence, by_gain = (
            tuned_gate(*parts, self.costs, [self.settings], stopping=each)
            for each in get_args(Stopping)
        )
        assert by_confidence is not None, "there is no budget"
        assert by_gain is not None, "there is no budget"
        records = self._all_records(self._val, by_gain)
        last = len(records) - 1
        places = sorted({round(last * i / (_N_COMPARED - 1)) for i in range(_N_COMPARED)})
        points, _ = self._gains([records[i] for i in places], by_confidence)
        difference, error = _mean_and_error(points)
        self.gain = {"difference": difference, "error": error}
        found = f"{difference:+.2f} points of accuracy at equal cost on val, s.e. {error:.2f}"
        if difference > Z_95 * error:
            print_status(f"The rules stop by predicted gains, which have {found}.")
            return "gain"
        print_status(f"The rules stop by confidence, because predicted gains have {found}.")
        return "confidence"

    @property
    def images_seen(self) -> int:
        """Number of images that were run to tune the rules, repeats counted."""
        return len(self._searched) * len(self._searched.settings)

    @property
    def least_cost(self) -> float:
        """Mean cost of the cheapest rule on val, in percent."""
        return min(map(self._cost, self._all_records(self._val, self.gate)))

    def check_budget(self, budget: float | None, gate: LearnedGate) -> None:
        """Print that only the rules can hold a budget in percent, so that they ship for it.

        Raises:
            ConfigError: If they cannot hold it either.
        """
        in_words, costs, macs = partial(self.costs.cost_text, digits=3), self.costs, gate.least_macs
        least = 100.0 * (costs.fixed_cost(gate_macs=macs) + float(costs.least_costs()[0]))
        if budget is None or budget >= least:
            return
        given = f"budget is {in_words(budget)}, but an image costs at least"
        if budget < self.least_cost:
            raise ConfigError(
                f"{given} {in_words(self.least_cost)} with the cheapest tuned rule and "
                f"{in_words(least)} with a learned gate; give a higher budget."
            )
        print_status(
            f"The {given} {in_words(least)} with a learned gate, so the tuned rules will ship; for "
            f"a learned gate give a higher budget, or --hidden below {gate.hidden}."
        )

    def set_cost_weight(self, task: Task) -> None:
        """Set the gate of all rules to the one with the highest reward at the cost weight."""
        weights = torch.tensor([task.reward.cost], dtype=torch.float64)
        last = max(1, len(self.gate.rules) - 1)
        self.gate.preference = self._best_rules(self.gate, weights, task)[0] / last

    def figures_on_val(self) -> dict[str, Any]:
        """Return the figures of the rule that the gate is set to, on the val split."""
        rule, answer = self.gate.rule, self.gate.passes.answer
        records = self._val.records(rule, answer, name="rule")
        return {
            "accuracy": records.accuracy,
            "computation": self._cost(records),
            "patterns": records.patterns,
            "choice": rule.description(self.gate.options),
        }

    def for_task(self, task: Task) -> RuleGate:
        """Return the rules with the highest reward at each preference, or at the cost weight.

        They stop by confidence: a learned gate does not see which class is predicted.
        """
        weights = torch.tensor([task.reward.cost], dtype=torch.float64)
        if task.cost_weight_range is not None:
            preferences = torch.tensor(preference_grid(_N_PREFERENCES), dtype=torch.float64)
            weights = task.cost_weight_range.at(preferences)
        rules = self.by_confidence
        best = self._best_rules(rules, weights, task)
        return RuleGate(
            [rules.rules[i] for i in best],
            answer=rules.passes.answer,
            options=rules.options,
            exits=rules.exits,
            budget_conditioning=None if len(best) == 1 else BudgetConditioning(),
        )

    def _best_rules(self, gate: RuleGate, weights: Tensor, task: Task) -> list[int]:
        """Return the index of the rule with the highest reward at each cost weight."""
        free = replace(task.reward, cost=0.0)
        records = self._all_records(self._searched, gate)
        rewards = torch.stack(
            [rewards_of(each, self.costs, free, budget=None).mean() for each in records]
        )
        spent = torch.stack([each.computation(self.costs).mean() / 100.0 for each in records])
        best: list[int] = (rewards - weights[:, None] * spent).argmax(dim=1).tolist()
        return best

    def compare(
        self, gate: LearnedGate, backbone: GatedBackbone, *, budget: float | None = None
    ) -> dict[str, Any]:
        """Compare a gate with the rules on val, at the cost that the gate has at each preference.

        Between the costs of two rules, a share of the images runs each. Costs below that of the
        cheapest rule are left out.

        Returns:
            ``differences`` of accuracy, gate minus rules, in points, at the ``computations`` in
            percent; their mean ``difference`` and its standard ``error`` over images; the smallest
            mean cost of the gate, ``least``; and what is ``kept``: the gate if the difference is
            significantly above zero and it can hold the ``budget`` in percent, else the rules.
        """
        images = self._val_images
        preferences: Sequence[Tensor | None] = [None]
        if gate.budget_conditioning is not None:
            device = images.labels.device
            grid = preference_grid(_N_COMPARED)
            preferences = [torch.full((len(images),), each, device=device) for each in grid]
        records = [evaluate_gate(backbone, gate, images, preferences=one) for one in preferences]
        least = min(self._cost(each) for each in records)
        points, compared = self._gains(records, self.gate)
        if not compared:
            found = {"difference": 0.0, "error": 0.0, "differences": [], "computations": []}
            return found | {"kept": "rules", "least": least}
        difference, error = _mean_and_error(points)
        only_rules = budget is not None and self.least_cost <= budget < least
        # Its checkpoint was chosen on val too, so that no worse there can be worse on other images.
        is_better = difference > Z_95 * error
        return {
            "difference": difference,
            "error": error,
            "differences": points.mean(dim=1).tolist(),
            "computations": compared,
            "kept": "gate" if is_better and not only_rules else "rules",
            "least": least,
        }

    def _gains(self, records: Sequence[GateRecords], gate: RuleGate) -> tuple[Tensor, list[float]]:
        """Return accuracies on val minus that of rules at equal cost, and the costs in percent.

        The first are in points, float64 ``[costs, n]``. Costs below that of the cheapest rule are
        left out.
        """
        rules = sorted(self._all_records(self._val, gate), key=self._cost)
        costs = [self._cost(each) for each in rules]
        gains, compared = [], []
        for each in records:
            cost = self._cost(each)
            if cost >= costs[0]:
                gains.append(100.0 * (each.correct.double() - _between(rules, costs, cost)))
                compared.append(cost)
        return torch.stack(gains) if gains else torch.empty(0, len(self._val)), compared

    def _cost(self, records: GateRecords) -> float:
        return records.computation(self.costs).mean().item()

    def _all_records(self, outputs: PassOutputs, gate: RuleGate) -> list[GateRecords]:
        return [outputs.records(rule, gate.passes.answer, name="rule") for rule in gate.rules]


def keep_better(
    record: TrainingRecord,
    rules: TunedRules,
    task: Task,
    run: RunFolder,
    *,
    name: str,
    budget: float | None,
) -> TrainingRecord:
    """Replace the run's gate by the tuned rules unless it is significantly better on val.

    They also ship if only they can hold the budget. ``name`` is that of the learner in tables. The
    result is ``record`` with the comparison.
    """
    learned = load_gate(run.path / GATE_FOLDER)
    assert isinstance(learned, LearnedGate), "the session keeps the best gate"
    save_gate(learned, run.path / LEARNED_FOLDER)
    print_status("Comparing the gate with the tuned rules on the val split ...")
    device = task.images.labels.device
    compared = rules.compare(learned.to(device), task.backbone, budget=budget)
    verdict = (
        f"{compared['difference']:+.2f} points of accuracy at equal cost, with a standard error of "
        f"{compared['error']:.2f} over the same images"
    )
    best = record.best_on_val
    kind = "fitted" if rules.gate.n_classes else "tuned"
    if compared["kept"] == "gate":
        print_status(f"The learned gate replaces the {kind} rules: {verdict}.")
    else:
        why, margin = "is not significantly better", Z_95 * compared["error"]
        if compared["difference"] < -margin:
            why = "is worse"
        elif compared["difference"] > margin:
            why = f"costs at least {rules.costs.cost_text(compared['least'], 3)}, above the budget"
        print_status(f"The {kind} rules ship, because the learned gate {why}: {verdict}.")
        rules.set_cost_weight(task)
        rules.gate.name = f"{name}, {kind} rule"
        save_gate(rules.gate, run.path / GATE_FOLDER)
        best = rules.figures_on_val() | {"learned": best}
    return replace(record, best_on_val=best | {"rules": compared | {"gain": rules.gain}})


def _mean_and_error(points: Tensor) -> tuple[float, float]:
    """Return the mean of differences ``[costs, n]``, and its standard error over images."""
    mean = points.mean(dim=0)
    return mean.mean().item(), mean.std().item() / len(mean) ** 0.5


def _between(rules: Sequence[GateRecords], costs: Sequence[float], cost: float) -> Tensor:
    """Return the expected correctness of each image at a cost, float64 ``[n]``."""
    after = bisect_right(costs, cost)
    if after == len(costs):
        return rules[-1].correct.double()
    share = (cost - costs[after - 1]) / (costs[after] - costs[after - 1])
    cheaper, dearer = rules[after - 1].correct.double(), rules[after].correct.double()
    return (1.0 - share) * cheaper + share * dearer


def validate(config: TrainCascadeConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the backbone, and return the run's name."""
    costs, budget = backbone.costs, config.budget
    uniform = torch.arange(len(costs.options))[:, None].expand(-1, costs.n_layers)
    least = costs.computation(uniform).min().item()
    if budget is not None and budget < least:
        raise ConfigError(
            f"budget is {costs.cost_text(budget, 4)}; the cheapest pass costs "
            f"{costs.cost_text(least, 4)}; give a higher one."
        )
    check_highest_budget(budget, costs, passes=config.passes)
    return f"cascade-{dataset.name}"


def train(
    config: TrainCascadeConfig, dataset: Dataset, run: RunFolder, stored: StoredBackbone
) -> TrainingRecord:
    """Choose the passes and their thresholds."""
    mirrored = dataset.flip if config.mirrored is None else config.mirrored
    rules = TunedRules(
        stored.backbone.to_inference().to(resolve_device(config.device)),
        dataset,
        limit=config.passes,
        mirrored=mirrored and config.passes > 1,
        answer=config.answer,
        budget=config.budget,
        stopping=config.stopping,
    )
    kind = "fitted rule" if rules.gate.n_classes else "tuned rule"
    rules.gate.name = f"{kind}, {config.passes} pass{'es' * (config.passes > 1)}"
    save_gate(rules.gate, run.path / GATE_FOLDER)
    print_status(_rules_text(rules.gate, rules.costs))
    best = rules.figures_on_val() | {"answer": rules.gate.passes.answer, "gain": rules.gain}
    return training_record(best, gate_images=rules.images_seen)


def _rules_text(gate: RuleGate, costs: CostTable) -> str:
    """Return the rule, or evenly spaced ones of a gate for all budgets as a table."""
    answer = f"Chosen on agent and val, answering with the {gate.passes.answer} of the passes"
    measured = gate.budget_conditioning
    if measured is None:
        return f"Chosen on agent and val: {gate.description}."
    last = len(gate.rules) - 1
    rows = [
        (
            gate.rules[i].description(costs.options),
            costs.cost_text(measured.computations[i], 3),
            f"{measured.accuracies[i]:.2f} %",
        )
        for i in sorted({round(last * row / (_MOST_ROWS - 1)) for row in range(_MOST_ROWS)})
    ]
    return f"{answer}:\n{aligned_table(('rule', 'cost on val', 'accuracy'), [rows])}"
