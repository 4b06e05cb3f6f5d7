"""Confidence exits: all images run at the same bits and exit where an exit is confident enough.

This is BranchyNet (Teerapittayanon et al., ICPR 2016) with the largest class probability in place
of the entropy. Only the heads of the exits are learned, so a gate that exits early must beat it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone, WithExits, activations
from dfs_rl.costs import COMPUTATION, CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.records import GateRecords, passed_exits_macs
from dfs_rl.evaluation.static_tables.scoring import exit_tables

_QUANTILES = 100
"""Number of intervals between the evenly spaced quantiles of confidence tried as thresholds."""
_TOLERANCE = 1e-9


class ExitOutputs(NamedTuple):
    """Outputs of all exits and of the head, with all layers at one option."""

    option: int
    predictions: Tensor  # int64 [n, exits + 1]
    log_likelihood: Tensor  # of the true class, float64 [n, exits + 1]
    confidence: Tensor  # largest class probability, float64 [n, exits + 1]
    labels: Tensor  # int64 [n]


class ExitRule(NamedTuple):
    """All layers at ``option``; exit from exit ``first`` on at a confidence of ``threshold``."""

    option: int
    first: int
    threshold: float

    def exit_index(self, outputs: ExitOutputs) -> Tensor:
        """Return the exit of each image, int64 ``[n]``; the number of exits for the head."""
        sure = outputs.confidence >= self.threshold
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


def run_exit_outputs(
    backbone: GatedBackbone, image_set: ImageSet, *, batch_size: int = BATCH_SIZE
) -> list[ExitOutputs]:
    """Run each option at all layers of a backbone with exits, and evaluate all exits."""
    assert isinstance(backbone, WithExits), "a backbone whose costs have exits"
    after, labels = backbone.costs.exits_after, image_set.labels.cpu()
    passes = []
    with torch.inference_mode():
        for option, bits in enumerate(backbone.options):
            parts: list[Tensor] = []
            for batch in batches(image_set, batch_size):
                stem, logits = backbone.stem(batch.images), []
                for index, hidden in enumerate(activations(backbone, stem, bits)):
                    if index in after:
                        logits.append(backbone.answer(hidden, index))
                logits.append(backbone.head(hidden))
                parts.append(torch.stack(logits, dim=1).double().log_softmax(dim=-1).cpu())
            log_probabilities = torch.cat(parts)  # [n, exits + 1, classes]
            best = log_probabilities.max(dim=-1)
            true_class = labels[:, None, None].expand(-1, log_probabilities.shape[1], 1)
            log_likelihood = log_probabilities.gather(2, true_class).squeeze(2)
            passes.append(
                ExitOutputs(option, best.indices, log_likelihood, best.values.exp(), labels)
            )
    return passes


def apply_exit_rule(passes: Sequence[ExitOutputs], rule: ExitRule, costs: CostTable) -> GateRecords:
    """Return the records of an exit rule; each image pays for all exits that it reaches."""
    outputs = passes[rule.option]
    exit_index = rule.exit_index(outputs)
    at_exit = torch.arange(len(exit_index)), exit_index
    options = _options_by_exit(rule.option, costs)[exit_index]
    overhead = passed_exits_macs(costs, options, first=rule.first)
    plain = costs.with_cost_model(COMPUTATION)
    return GateRecords(
        name="exits",
        predictions=outputs.predictions[at_exit],
        labels=outputs.labels,
        options=options,
        log_likelihood=outputs.log_likelihood[at_exit],
        confidence=outputs.confidence[at_exit],
        gate_macs_taken=overhead,
        excess_macs=overhead - passed_exits_macs(plain, options, first=rule.first),
        first_exit=rule.first,
    )


def choose_exit_rule(passes: Sequence[ExitOutputs], costs: CostTable, budget: float) -> ExitRule:
    """Choose the most accurate exit rule within a budget on the mean computation.

    Of equally accurate rules the likelier one is chosen, then the cheaper one.

    Raises:
        ConfigError: If no rule is within the budget.
    """
    best: tuple[tuple[float, float, float], ExitRule] | None = None
    cheapest = math.inf
    for outputs in passes:
        correct = (outputs.predictions == outputs.labels[:, None]).double()
        options_by_exit = _options_by_exit(outputs.option, costs)
        for first in range(len(costs.exits) + 1):  # the last one uses no exit
            costs_by_exit = costs.computation(
                options_by_exit, gate_macs=passed_exits_macs(costs, options_by_exit, first=first)
            )
            for threshold in _thresholds(outputs, first):
                rule = ExitRule(outputs.option, first, threshold)
                exit_index = rule.exit_index(outputs)
                cost = costs_by_exit[exit_index].mean().item()
                cheapest = min(cheapest, cost)
                if cost > budget + _TOLERANCE:
                    continue
                accuracy, likelihood = (
                    values.gather(1, exit_index[:, None]).mean().item()
                    for values in (correct, outputs.log_likelihood)
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


def _thresholds(outputs: ExitOutputs, first: int) -> list[float]:
    """Return thresholds from the one where every image exits at once to infinity."""
    used = outputs.confidence[:, first:-1]
    if used.shape[1] == 0:
        return [math.inf]
    places = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    values = used.flatten().sort().values
    at = (places * (len(values) - 1)).round().long()
    return [*sorted(set(values[at].tolist())), math.inf]


def _options_by_exit(option: int, costs: CostTable) -> Tensor:
    """Return the actions up to each exit and up to the head, int64 ``[exits + 1, layers]``."""
    whole = (option,) * costs.n_layers
    return torch.tensor([*exit_tables(costs, whole), whole])
