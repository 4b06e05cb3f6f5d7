"""Confidence exits: every image runs at the same bits, and leaves at the first exit that is sure enough.

That is BranchyNet (Teerapittayanon et al., ICPR 2016) with the highest class probability for the
entropy. It needs no learning beyond the exits' heads, so it is the baseline that a gate which
leaves early must beat.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import CostTable
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.records import GateRecords

_QUANTILES = 100
"""Thresholds are tried at so many evenly spaced quantiles of the confidence."""
_TOLERANCE = 1e-9


class ExitOutputs(NamedTuple):
    """What every exit and the end of the network say of each image when all layers run at one option.

    Attributes:
        option: The option.
        predictions: int64 ``[n, exits + 1]``.
        log_likelihood: Log-probability of the true class, float64 ``[n, exits + 1]``.
        confidence: Largest class probability, float64 ``[n, exits + 1]``.
        labels: True class, int64 ``[n]``.
    """

    option: int
    predictions: Tensor
    log_likelihood: Tensor
    confidence: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """Which answers are right, bool ``[n, exits + 1]``."""
        return self.predictions == self.labels[:, None]


class ExitRule(NamedTuple):
    """All layers at ``option``; leave at exit ``first`` or a later one where its confidence is at least ``threshold``."""

    option: int
    first: int
    threshold: float

    def exit_index(self, outputs: ExitOutputs) -> Tensor:
        """Return which answer each image takes, int64 ``[n]``; the number of exits for the end of the network."""
        sure = outputs.confidence >= self.threshold
        sure[:, : self.first] = False
        sure[:, -1] = True
        return sure.int().argmax(dim=1)

    def description(self, costs: CostTable) -> str:
        """Tell the rule."""
        bits, used = costs.options[self.option], costs.exits_after[self.first :]
        if not used or self.threshold == math.inf:
            return f"{bits} bit, leaving nowhere"
        places = ", ".join(map(str, used))
        return f"{bits} bit, leaving after {places} layers where the exit is {100 * self.threshold:.1f} % sure"


def run_exit_outputs(
    backbone: WalkableBackbone, image_set: ImageSet, *, batch_size: int = BATCH_SIZE
) -> list[ExitOutputs]:
    """Run every option of the menu at all layers and ask every exit on the way, in menu order.

    Args:
        backbone: A backbone with exits, on the device of ``image_set``.
        image_set: The images.
        batch_size: Images that run together.
    """
    assert isinstance(backbone, WithExits), "only asked of a network with exits"
    after = backbone.costs.exits_after
    passes = []
    with torch.inference_mode():
        for option, bits in enumerate(backbone.options):
            outputs: list[Tensor] = []
            for batch in batches(image_set, batch_size):
                hidden, logits = backbone.stem(batch.images), []
                for index, layer in enumerate(backbone.layers):
                    if index in after:
                        logits.append(backbone.answer(hidden, index))
                    hidden = layer(hidden, bits)
                logits.append(backbone.head(hidden))
                outputs.append(torch.stack(logits, dim=1).double().log_softmax(dim=-1).cpu())
            passes.append(_summarize_outputs(option, torch.cat(outputs), image_set.labels.cpu()))
    return passes


def _summarize_outputs(option: int, log_probabilities: Tensor, labels: Tensor) -> ExitOutputs:
    """Boil ``[n, exits + 1, classes]`` down."""
    best = log_probabilities.max(dim=-1)
    true_class = labels[:, None, None].expand(-1, log_probabilities.shape[1], 1)
    return ExitOutputs(
        option=option,
        predictions=best.indices,
        log_likelihood=log_probabilities.gather(2, true_class).squeeze(2),
        confidence=best.values.exp(),
        labels=labels,
    )


def apply_exit_rule(
    passes: Sequence[ExitOutputs], rule: ExitRule, costs: CostTable, *, name: str = "exits"
) -> GateRecords:
    """Let images leave by a rule; each pays for all exits that it asks.

    Args:
        passes: Of every option over the same images, in menu order.
        rule: When to leave.
        costs: What layers and exits cost.
        name: What the records are called.
    """
    outputs = passes[rule.option]
    exit_index = rule.exit_index(outputs)
    images = torch.arange(len(exit_index))
    return GateRecords(
        name=name,
        predictions=outputs.predictions[images, exit_index],
        labels=outputs.labels,
        options=_options_by_exit(rule.option, costs)[exit_index],
        log_likelihood=outputs.log_likelihood[images, exit_index],
        confidence=outputs.confidence[images, exit_index],
        gate_macs_taken=_exit_overhead_macs(rule.first, costs)[exit_index],
    )


def choose_exit_rule(passes: Sequence[ExitOutputs], costs: CostTable, budget: float) -> ExitRule:
    """Choose the most accurate rule whose mean computation is at most ``budget``.

    Ties go to the higher log-likelihood, then to the cheaper one.

    Args:
        passes: Of every option over the selection split, in menu order.
        costs: What layers and exits cost.
        budget: Upper bound on mean computation in percent, fixed parts included.

    Raises:
        ConfigError: If even the cheapest rule is above ``budget``.
    """
    best: tuple[tuple[float, float, float], ExitRule] | None = None
    cheapest = math.inf
    for outputs in passes:
        right, options_by_exit = outputs.correct.double(), _options_by_exit(outputs.option, costs)
        for first in range(len(costs.exits) + 1):  # the last of them asks none
            costs_by_exit = costs.computation(
                options_by_exit, gate_macs=_exit_overhead_macs(first, costs)
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
                    for values in (right, outputs.log_likelihood)
                )
                score = (accuracy, likelihood, -cost)
                if best is None or score > best[0]:
                    best = (score, rule)
    if best is None:
        raise ConfigError(
            f"no way to leave by confidence costs at most {budget:.4g} %; the cheapest costs "
            f"{cheapest:.4g} %."
        )
    return best[1]


def _thresholds(outputs: ExitOutputs, first: int) -> list[float]:
    """Return thresholds from the one at which every image leaves at once to the one at which none does."""
    used = outputs.confidence[:, first:-1]
    if used.shape[1] == 0:
        return [math.inf]
    places = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    values = used.flatten().sort().values
    at = (places * (len(values) - 1)).round().long()
    return [*sorted(set(values[at].tolist())), math.inf]


def _options_by_exit(option: int, costs: CostTable) -> Tensor:
    """Return what an image does that leaves at each exit, or not at all, int64 ``[exits + 1, layers]``."""
    options_by_exit = torch.full((len(costs.exits) + 1, costs.n_layers), option)
    for row, after in zip(options_by_exit, costs.exits_after, strict=False):
        row[after:] = costs.exit_action
    return options_by_exit


def _exit_overhead_macs(first: int, costs: CostTable) -> Tensor:
    """Return what the exits cost that were asked before each one, or before the end, in MACs at full precision, ``[exits + 1]``."""
    each = [costs.cost(e.macs, e.bits) * (i >= first) for i, e in enumerate(costs.exits)]
    return torch.tensor([0.0, *each], dtype=torch.float64).cumsum(0)
