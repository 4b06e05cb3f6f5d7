"""The confidence cascade: a cheap pass for every image, a dearer one where the first is unsure.

It needs no learning, so it is the baseline that a gate which sees the image must beat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.cascade import FirstPass

# The share of images that run again is tried in steps of 1 %, and as high as the budget allows.
_SHARE_STEPS = 100
_TOLERANCE = 1e-9


class Cascade(NamedTuple):
    """Uniform option ``first`` for all; ``second`` where the first pass is below ``threshold``."""

    first: int
    second: int
    threshold: float


def run_cascade(
    uniform: Sequence[GateRecords], cascade: Cascade, *, name: str = "cascade"
) -> GateRecords:
    """Join two uniform passes; images that run twice pay for both, stem and head included.

    Args:
        uniform: Records of every uniform option over the same images, in menu order.
        cascade: Which two, and when the second.
        name: What the records are called.
    """
    first, second = uniform[cascade.first], uniform[cascade.second]
    escalated = first.confidence < cascade.threshold
    return GateRecords(
        name=name,
        predictions=torch.where(escalated, second.predictions, first.predictions),
        labels=first.labels,
        options=torch.where(escalated[:, None], second.options, first.options),
        log_likelihood=torch.where(escalated, second.log_likelihood, first.log_likelihood),
        confidence=torch.where(escalated, second.confidence, first.confidence),
        first_pass=FirstPass(options=first.options, escalated=escalated),
    )


def cascade_text(cascade: Cascade, records: GateRecords, options: BitOptions) -> str:
    """Say what a cascade does, by the records of ``run_cascade``."""
    if records.first_pass is None:
        return ""
    share = 100.0 * records.first_pass.escalated.double().mean().item()
    first, second = options[cascade.first], options[cascade.second]
    if share == 0:
        return f"{first} bit for all"
    return f"{first} bit, then {second} bit for the least sure {share:.2g} %"


def choose_cascade(
    uniform: Sequence[GateRecords], costs: CostTable, budget: float
) -> Cascade | None:
    """Choose the most accurate cascade whose mean computation is at most ``budget``.

    The second pass costs more, and never runs for all images, for then the first would be
    for nothing; it may run for none. Ties go to the higher log-likelihood, then to the cheaper one.

    Args:
        uniform: Records of every uniform option over the selection split, in menu order.
        costs: What the options cost.
        budget: Upper bound on mean computation in percent, fixed parts included.

    Returns:
        The choice; None if even one pass at the cheapest option is above ``budget``, as it can be
        where gates leave early.
    """
    mean_costs = [records.computation(costs).mean().item() for records in uniform]
    best: tuple[tuple[float, float, float], Cascade] | None = None
    for a, first in enumerate(uniform):
        if mean_costs[a] > budget + _TOLERANCE:
            continue
        costlier = [b for b in range(len(uniform)) if mean_costs[b] > mean_costs[a]]
        for b in costlier or [a]:
            second = uniform[b]
            for score, threshold in _curve(first, second, mean_costs[a], mean_costs[b], budget):
                if best is None or score > best[0]:
                    best = (score, Cascade(a, b, threshold))
    return None if best is None else best[1]


def _curve(
    first: GateRecords, second: GateRecords, cost_first: float, cost_second: float, budget: float
) -> list[tuple[tuple[float, float, float], float]]:
    """Return (accuracy, log-likelihood, minus cost) and threshold of each share that fits."""
    n = len(first)
    confidence, order = first.confidence.sort(stable=True)
    zero = torch.zeros(1, dtype=torch.float64)
    gain = (second.correct.double() - first.correct.double())[order].cumsum(0)
    gain_log = (second.log_likelihood - first.log_likelihood)[order].cumsum(0)
    correct = first.correct.sum() + torch.cat([zero, gain])  # [n + 1], by images that run again
    log_likelihood = first.log_likelihood.sum() + torch.cat([zero, gain_log])
    most = 0
    if cost_second > cost_first:
        most = min(n - 1, int((budget - cost_first + _TOLERANCE) / cost_second * n))
    curve = []
    for n_escalated in sorted({min(most, n * i // _SHARE_STEPS) for i in range(_SHARE_STEPS)}):
        threshold = _threshold_between(confidence, n_escalated)
        # Images of equal confidence stand or fall together: fewer than wanted may run again.
        escalated = int((confidence < threshold).sum())
        cost = cost_first + cost_second * escalated / n
        score = (correct[escalated].item(), log_likelihood[escalated].item(), -cost)
        curve.append((score, threshold))
    return curve


def _threshold_between(confidence: Tensor, n_escalated: int) -> float:
    """Return a threshold that so many of the ascending ``confidence`` stay below.

    It lies in the middle between two images, so that rounding on another machine moves neither to
    the other side.
    """
    if n_escalated == 0:
        return 0.0
    last, following = confidence[n_escalated - 1].item(), confidence[n_escalated].item()
    return following if last == following else (last + following) / 2
