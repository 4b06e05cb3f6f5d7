"""Confidence exits: every image runs at the same bits, and leaves at the first exit that is sure enough.

That is BranchyNet (Teerapittayanon et al., ICPR 2016) with the highest class probability for the entropy. It needs no learning beyond
the exits' heads, so it is the rival that a gate which leaves early must beat.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone, WithExits
from dfs_rl.costs import CostTable, relative_cost
from dfs_rl.data.batching import batches
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import BATCH_SIZE
from dfs_rl.evaluation.records import GateRecords

_QUANTILES = 100
"""Thresholds are tried at so many evenly spaced quantiles of the confidence."""
_TOLERANCE = 1e-9


class ExitPass(NamedTuple):
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

    def taken(self, answers: ExitPass) -> Tensor:
        """Return which answer each image takes, int64 ``[n]``; the number of exits for the end of the network."""
        sure = answers.confidence >= self.threshold
        sure[:, : self.first] = False
        sure[:, -1] = True
        return sure.int().argmax(dim=1)

    def words(self, costs: CostTable) -> str:
        """Tell the rule."""
        bits, asked = costs.options[self.option], costs.exits_after[self.first :]
        if not asked or self.threshold == math.inf:
            return f"{bits} bit, leaving nowhere"
        places = ", ".join(map(str, asked))
        return f"{bits} bit, leaving after {places} layers where the exit is {100 * self.threshold:.1f} % sure"


def exit_passes(
    backbone: WalkableBackbone, image_set: ImageSet, *, batch_size: int = BATCH_SIZE
) -> list[ExitPass]:
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
            answers: list[Tensor] = []
            for batch in batches(image_set, batch_size):
                hidden, said = backbone.stem(batch.images), []
                for index, layer in enumerate(backbone.layers):
                    if index in after:
                        said.append(backbone.answer(hidden, index))
                    hidden = layer(hidden, bits)
                said.append(backbone.head(hidden))
                answers.append(torch.stack(said, dim=1).double().log_softmax(dim=-1).cpu())
            passes.append(_pass(option, torch.cat(answers), image_set.labels.cpu()))
    return passes


def _pass(option: int, log_probabilities: Tensor, labels: Tensor) -> ExitPass:
    """Boil ``[n, exits + 1, classes]`` down."""
    best = log_probabilities.max(dim=-1)
    own = labels[:, None, None].expand(-1, log_probabilities.shape[1], 1)
    return ExitPass(
        option=option,
        predictions=best.indices,
        log_likelihood=log_probabilities.gather(2, own).squeeze(2),
        confidence=best.values.exp(),
        labels=labels,
    )


def run_exits(
    passes: Sequence[ExitPass], rule: ExitRule, costs: CostTable, *, name: str = "exits"
) -> GateRecords:
    """Let images leave by a rule; each pays for all exits that it asks.

    Args:
        passes: Of every option over the same images, in menu order.
        rule: When to leave.
        costs: What layers and exits cost.
        name: What the records are called.
    """
    answers = passes[rule.option]
    taken = rule.taken(answers)
    images = torch.arange(len(taken))
    return GateRecords(
        name=name,
        predictions=answers.predictions[images, taken],
        labels=answers.labels,
        options=_ways(rule.option, costs)[taken],
        log_likelihood=answers.log_likelihood[images, taken],
        confidence=answers.confidence[images, taken],
        gate_macs_taken=_asked_in_vain(rule.first, costs)[taken],
    )


def choose_exits(passes: Sequence[ExitPass], costs: CostTable, cap: float) -> ExitRule:
    """Choose the most accurate rule whose mean computation is at most ``cap``.

    Ties go to the higher log-likelihood, then to the cheaper one.

    Args:
        passes: Of every option over the selection split, in menu order.
        costs: What layers and exits cost.
        cap: Upper bound on mean computation in percent, fixed parts included.

    Raises:
        ConfigError: If even the cheapest rule is above ``cap``.
    """
    best: tuple[tuple[float, float, float], ExitRule] | None = None
    cheapest = math.inf
    for answers in passes:
        right, ways = answers.correct.double(), _ways(answers.option, costs)
        for first in range(len(costs.exits) + 1):  # the last of them asks none
            price = costs.computation(ways, gate_macs=_asked_in_vain(first, costs))
            for threshold in _thresholds(answers, first):
                rule = ExitRule(answers.option, first, threshold)
                taken = rule.taken(answers)
                cost = price[taken].mean().item()
                cheapest = min(cheapest, cost)
                if cost > cap + _TOLERANCE:
                    continue
                accuracy, likelihood = (
                    values.gather(1, taken[:, None]).mean().item()
                    for values in (right, answers.log_likelihood)
                )
                score = (accuracy, likelihood, -cost)
                if best is None or score > best[0]:
                    best = (score, rule)
    if best is None:
        raise ConfigError(
            f"no way to leave by confidence costs at most {cap:.4g} %; the cheapest costs {cheapest:.4g} %."
        )
    return best[1]


def _thresholds(answers: ExitPass, first: int) -> list[float]:
    """Return thresholds from the one at which every image leaves at once to the one at which none does."""
    asked = answers.confidence[:, first:-1]
    if asked.shape[1] == 0:
        return [math.inf]
    places = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    values = asked.flatten().sort().values
    at = (places * (len(values) - 1)).round().long()
    return [*sorted(set(values[at].tolist())), math.inf]


def _ways(option: int, costs: CostTable) -> Tensor:
    """Return what an image does that leaves at each exit, or not at all, int64 ``[exits + 1, layers]``."""
    ways = torch.full((len(costs.exits) + 1, costs.n_layers), option)
    for row, after in zip(ways, costs.exits_after, strict=False):
        row[after:] = costs.exit_action
    return ways


def _asked_in_vain(first: int, costs: CostTable) -> Tensor:
    """Return what the exits cost that were asked before each one, or before the end, in MACs at full precision, ``[exits + 1]``."""
    each = [e.macs * relative_cost(e.bits) * (i >= first) for i, e in enumerate(costs.exits)]
    return torch.tensor([0.0, *each], dtype=torch.float64).cumsum(0)
