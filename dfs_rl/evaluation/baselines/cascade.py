"""Confidence cascade: a cheap pass for every image, an expensive one for unsure answers.

It needs no learning, so a gate that sees the image must beat it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.evaluation.records import GateRecords, choose_records
from dfs_rl.gating.passes import EarlierPasses

_SHARE_STEPS = 100
"""Shares of escalated images are tried in steps of 1 %, up to the budget."""
_TOLERANCE = 1e-9


class Cascade(NamedTuple):
    """Uniform option ``first`` for all; ``second`` where the first pass is below ``threshold``."""

    first: int
    second: int
    threshold: float


def run_cascade(uniform: Sequence[GateRecords], cascade: Cascade) -> GateRecords:
    """Combine two of the uniform passes; images with a second pass pay for both."""
    first, second = uniform[cascade.first], uniform[cascade.second]
    escalated = first.confidence < cascade.threshold
    taken = choose_records([first, second], escalated.long(), "cascade")
    ran = escalated[:, None]
    earlier = EarlierPasses(options=first.options[:, None] * ran[:, :, None], ran=ran)
    return replace(taken, earlier=earlier)


def cascade_text(cascade: Cascade, records: GateRecords, options: BitOptions) -> str:
    """Describe a cascade with its records from ``run_cascade``."""
    share = 100.0 * (records.mean_passes - 1.0)
    first, second = options[cascade.first], options[cascade.second]
    if share == 0:
        return f"{first} bit for all"
    return f"{first} bit, then {second} bit for the least sure {share:.2g} %"


def choose_cascade(
    uniform: Sequence[GateRecords], costs: CostTable, budget: float
) -> Cascade | None:
    """Choose the most accurate cascade within a budget on the mean computation.

    The second pass costs more than the first and never runs for all images. Of equally accurate
    cascades the one with the higher log-likelihood is chosen, then the cheaper one.

    ``uniform`` has the records of each uniform option on the selection split. The result is None if
    a pass at the cheapest option exceeds the budget.
    """
    mean_costs = [records.computation(costs).mean().item() for records in uniform]
    best: tuple[tuple[float, float, float], Cascade] | None = None
    for a, first in enumerate(uniform):
        if mean_costs[a] > budget + _TOLERANCE:
            continue
        costlier = [b for b in range(len(uniform)) if mean_costs[b] > mean_costs[a]]
        for b in costlier or [a]:
            curve = _curve(first, uniform[b], mean_costs[a], mean_costs[b], budget)
            for score, threshold in curve:
                if best is None or score > best[0]:
                    best = (score, Cascade(a, b, threshold))
    return None if best is None else best[1]


def _curve(
    first: GateRecords, second: GateRecords, cost_first: float, cost_second: float, budget: float
) -> Iterator[tuple[tuple[float, float, float], float]]:
    """Yield (accuracy, log-likelihood, -cost) and threshold of each share within the budget."""
    n = len(first)
    confidence, order = first.confidence.sort(stable=True)
    zero = torch.zeros(1, dtype=torch.float64)
    gain = (second.correct.double() - first.correct.double())[order].cumsum(0)
    gain_log = (second.log_likelihood - first.log_likelihood)[order].cumsum(0)
    correct = first.correct.sum() + torch.cat([zero, gain])  # [n + 1], by number escalated
    log_likelihood = first.log_likelihood.sum() + torch.cat([zero, gain_log])
    most = 0
    if cost_second > cost_first:
        most = min(n - 1, int((budget - cost_first + _TOLERANCE) / cost_second * n))
    for n_escalated in sorted({min(most, n * i // _SHARE_STEPS) for i in range(_SHARE_STEPS)}):
        threshold = _threshold_between(confidence, n_escalated)
        # Images of equal confidence escalate together, so there may be fewer.
        escalated = int((confidence < threshold).sum())
        cost = cost_first + cost_second * escalated / n
        yield (correct[escalated].item(), log_likelihood[escalated].item(), -cost), threshold


def _threshold_between(confidence: Tensor, n_escalated: int) -> float:
    """Return a threshold above the ``n_escalated`` lowest of the sorted confidences.

    It lies halfway between two images, so rounding on another machine moves neither across it.
    """
    if n_escalated == 0:
        return 0.0
    last, following = confidence[n_escalated - 1].item(), confidence[n_escalated].item()
    return following if last == following else (last + following) / 2
