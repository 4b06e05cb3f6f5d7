"""Confidence exits: all images run at the same bits and exit where an exit is confident enough.

This is BranchyNet (Teerapittayanon et al., ICPR 2016) with the largest class probability in place
of the entropy. Only the heads of the exits are learned, so a gate that exits early must beat it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import COMPUTATION, CostTable
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE, evaluate_draws
from dfs_rl.evaluation.records import GateRecords, choose_records, passed_exits_macs
from dfs_rl.evaluation.static_tables.scoring import exit_tables

_QUANTILES = 100
"""Number of intervals between the evenly spaced quantiles of confidence tried as thresholds."""
_TOLERANCE = 1e-9

ExitRecords = Sequence[GateRecords]
"""Records where all images take the first exit, the second and so on, and where none takes one."""


class ExitRule(NamedTuple):
    """All layers at ``option``; exit from exit ``first`` on at a confidence of ``threshold``."""

    option: int
    first: int
    threshold: float

    def exit_index(self, records: ExitRecords) -> Tensor:
        """Return the exit of each image, int64 ``[n]``; the number of exits for the head."""
        sure = _by_exit(records, "confidence") >= self.threshold
        sure[:, : self.first] = False
        sure[:, -1] = True
        return sure.int().argmax(dim=1)

    def description(self, costs: CostTable) -> str:
        """Return a short description for tables."""
        bits, used = costs.options[self.option], costs.exits_after[self.first :]
        if not used or self.threshold == math.inf:
            return f"{bits} bit, no exit"
        confidence = f"{100 * self.threshold:.1f} %"
        places = ", ".join(map(str, used))
        return f"{bits} bit, exits after {places} layers at a confidence of {confidence}"


def run_exits(
    backbone: GatedBackbone, image_set: ImageSet, *, batch_size: int = BATCH_SIZE
) -> list[ExitRecords]:
    """Run each option at all layers of a backbone with exits, and evaluate all exits."""
    costs, n = backbone.costs, len(image_set)
    found: list[ExitRecords] = []
    for option in range(len(costs.options)):
        whole = (option,) * costs.n_layers
        draws = [torch.tensor(table).expand(n, -1) for table in (*exit_tables(costs, whole), whole)]
        together = batch_size * len(draws)  # one image counts once per draw
        found.append(evaluate_draws(backbone, image_set, draws, name="exits", batch_size=together))
    return found


def apply_exit_rule(found: Sequence[ExitRecords], rule: ExitRule, costs: CostTable) -> GateRecords:
    """Return the records of an exit rule; each image pays for all exits that it reaches."""
    records = found[rule.option]
    chosen = choose_records(records, rule.exit_index(records), "exits")
    overhead, plain = (
        passed_exits_macs(each, chosen.options, first=rule.first)
        for each in (costs, costs.with_cost_model(COMPUTATION))
    )
    return replace(
        chosen, gate_macs_taken=overhead, excess_macs=overhead - plain, first_exit=rule.first
    )


def choose_exit_rule(found: Sequence[ExitRecords], costs: CostTable, budget: float) -> ExitRule:
    """Choose the most accurate exit rule within a budget on the mean computation.

    Of equally accurate rules the likelier one is chosen, then the cheaper one.

    Raises:
        ConfigError: If no rule is within the budget.
    """
    best: tuple[tuple[float, float, float], ExitRule] | None = None
    cheapest = math.inf
    for option, records in enumerate(found):
        correct, log_likelihood = (
            _by_exit(records, name) for name in ("correct", "log_likelihood")
        )
        options_by_exit = torch.stack([each.options[0] for each in records])
        for first in range(len(costs.exits) + 1):  # the last one uses no exit
            costs_by_exit = costs.computation(
                options_by_exit, gate_macs=passed_exits_macs(costs, options_by_exit, first=first)
            )
            for threshold in _thresholds(records, first):
                rule = ExitRule(option, first, threshold)
                exit_index = rule.exit_index(records)
                cost = costs_by_exit[exit_index].mean().item()
                cheapest = min(cheapest, cost)
                if cost > budget + _TOLERANCE:
                    continue
                accuracy, likelihood = (
                    values.gather(1, exit_index[:, None]).mean().item()
                    for values in (correct.double(), log_likelihood)
                )
                score = (accuracy, likelihood, -cost)
                if best is None or score > best[0]:
                    best = (score, rule)
    if best is None:
        raise ConfigError(
            f"budget is {costs.cost_text(budget, 4)}; no rule of confidence exits costs less than "
            f"{costs.cost_text(cheapest, 4)}."
        )
    return best[1]


def _thresholds(records: ExitRecords, first: int) -> list[float]:
    """Return thresholds from the one where every image exits at once to infinity."""
    used = _by_exit(records, "confidence")[:, first:-1]
    if used.shape[1] == 0:
        return [math.inf]
    places = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    values = used.flatten().sort().values
    at = (places * (len(values) - 1)).round().long()
    return [*sorted(set(values[at].tolist())), math.inf]


def _by_exit(records: ExitRecords, name: str) -> Tensor:
    """Return a field of the records, ``[n, exits + 1]``."""
    return torch.stack([getattr(each, name) for each in records], dim=1)
