"""Choice of confidence cascades, and of rules over more passes, on the agent and val splits."""

import torch

from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import Dataset
from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import check_highest_budget
from dfs_rl.experiments.rule_start import TunedRules
from dfs_rl.experiments.search_config import TrainCascadeConfig
from dfs_rl.experiments.session import TrainingRecord, training_record
from dfs_rl.gating.model import GATE_FOLDER
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import save_gate
from dfs_rl.reporting.tables import aligned_table
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder

_MOST_ROWS = 10
"""Largest number of rules that the table shows."""


def validate(config: TrainCascadeConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the backbone, and return the run's name."""
    costs, budget = backbone.costs, config.budget
    uniform = torch.arange(len(costs.options))[:, None].expand(-1, costs.n_layers)
    least = costs.computation(uniform).min().item()
    if budget is not None and budget < least:
        raise ConfigError(
            f"budget is {costs.cost_text(budget, 4)}; the cheapest pass costs "
            f"{costs.cost_text(least, 4)}."
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
    )
    save_gate(rules.gate, run.path / GATE_FOLDER)
    print_status(_rules_text(rules.gate, rules.costs))
    best = rules.figures_on_val() | {"answer": rules.gate.passes.answer}
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
