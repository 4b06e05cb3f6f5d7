"""The confidence cascade: a cheap pass for every image, a dearer one where the first is unsure.

It needs no learning, so it is the rival that a gate which sees the image must beat.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.cascade import FirstPass

# The share of images that run again is tried in steps of 1 %, and as high as the cap allows.
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
    again = first.confidence < cascade.threshold
    return GateRecords(
        name=name,
        predictions=torch.where(again, second.predictions, first.predictions),
        labels=first.labels,
        options=torch.where(again[:, None], second.options, first.options),
        log_likelihood=torch.where(again, second.log_likelihood, first.log_likelihood),
        confidence=torch.where(again, second.confidence, first.confidence),
        first_pass=FirstPass(options=first.options, escalated=again),
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


def choose_cascade(uniform: Sequence[GateRecords], costs: CostTable, cap: float) -> Cascade | None:
    """Choose the most accurate cascade whose mean computation is at most ``cap``.

    The second pass is the dearer one, and never runs for all images, for then the first would be for nothing; it may run for none.
    Ties go to the higher log-likelihood, then to the cheaper one.

    Args:
        uniform: Records of every uniform option over the selection split, in menu order.
        costs: What the options cost.
        cap: Upper bound on mean computation in percent, fixed parts included.

    Returns:
        The choice; None if even one pass at the cheapest option is above ``cap``, as it can be where gates leave early.
    """
    price = [records.computation(costs).mean().item() for records in uniform]
    best: tuple[tuple[float, float, float], Cascade] | None = None
    for a, first in enumerate(uniform):
        if price[a] > cap + _TOLERANCE:
            continue
        dearer = [b for b in range(len(uniform)) if price[b] > price[a]]
        for b in dearer or [a]:
            second = uniform[b]
            for score, threshold in _curve(first, second, price[a], price[b], cap):
                if best is None or score > best[0]:
                    best = (score, Cascade(a, b, threshold))
    return None if best is None else best[1]


def _curve(
    first: GateRecords, second: GateRecords, price_first: float, price_second: float, cap: float
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
    if price_second > price_first:
        most = min(n - 1, int((cap - price_first + _TOLERANCE) / price_second * n))
    curve = []
    for wanted in sorted({min(most, n * i // _SHARE_STEPS) for i in range(_SHARE_STEPS)}):
        threshold = _between(confidence, wanted)
        # Images of equal confidence stand or fall together: fewer than wanted may run again.
        again = int((confidence < threshold).sum())
        cost = price_first + price_second * again / n
        score = (correct[again].item(), log_likelihood[again].item(), -cost)
        curve.append((score, threshold))
    return curve


def _between(confidence: Tensor, wanted: int) -> float:
    """Return a threshold that so many of the ascending ``confidence`` stay below.

    It lies in the middle between two images, so that rounding on another machine moves neither to the other side.
    """
    if wanted == 0:
        return 0.0
    last, following = confidence[wanted - 1].item(), confidence[wanted].item()
    return following if last == following else (last + following) / 2
