"""What a gate for all budgets costs, and gets right, at each position of its dial."""

from typing import NamedTuple

import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.run_gate import BATCH_SIZE, evaluate_gate
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.dial import Dial, measured_positions
from dfs_rl.gating.gates import Gate
from dfs_rl.gating.learned import LearnedGate

POSITIONS = 17
"""How many are measured: between two of them the cost of most gates changes by a tenth or less."""
_STRETCHES = 8
"""Of the dial, whose images together give a point."""


class MeasuredDial(NamedTuple):
    """What ``measure_dial`` finds.

    Attributes:
        dial: A dial with its ``computations``.
        points: What the gate costs and gets right at each measured position.
    """

    dial: Dial
    points: tuple[CurvePoint, ...]


def gate_text(gate: Gate) -> str:
    """Say what a gate for all budgets is turned to, or what a cascade does; empty for any other, and where the dial was not measured."""
    if isinstance(gate, CascadeGate):
        return gate.words
    if not isinstance(gate, LearnedGate) or gate.dial is None or not gate.dial.computations:
        return ""
    costs = gate.dial.computation_at(gate.position)
    return f"learned all budgets and is turned to where images of the validation split cost {costs:.3g} %"


def points_along(computation: Tensor, correct: Tensor, positions: Tensor) -> list[CurvePoint]:
    """Estimate a gate's curve from images of which each was walked at a position of its own.

    Images of one stretch of the dial make a point. A gate that spends more is taken to be at least as accurate: points that say
    otherwise, which among so few images are chance, are pooled (isotonic regression), so that the curve's area is not flattered
    by its luckiest points.

    Args:
        computation: Of each image in percent, ``[n]``.
        correct: Whether it was classified rightly, bool ``[n]``.
        positions: In [0, 1], ``[n]``.

    Returns:
        A point for each stretch that has images, cheapest first.
    """
    stretch = (positions.double() * _STRETCHES).long().clamp(max=_STRETCHES - 1)  # [n]
    inside = [stretch == number for number in range(_STRETCHES)]
    found = [
        (float(computation[images].double().mean()), 100.0 * float(correct[images].double().mean()))
        for images in inside
        if images.any()
    ]
    costs = sorted({cost for cost, _ in found})
    equal = [[accuracy for cost, accuracy in found if cost == one] for one in costs]
    means = [sum(accuracies) / len(accuracies) for accuracies in equal]
    weights = [len(accuracies) for accuracies in equal]
    pooled = isotonic_regression(means, sample_weight=weights)
    return [
        CurvePoint(cost, float(accuracy))
        for cost, accuracy, times in zip(costs, pooled, weights, strict=True)
        for _ in range(times)
    ]


def measure_dial(
    backbone: WalkableBackbone,
    gate: LearnedGate,
    images: ImageSet,
    *,
    batch_size: int = BATCH_SIZE,
) -> MeasuredDial:
    """Walk images at evenly spaced positions of a gate's dial.

    Args:
        backbone: The backbone, on the device of ``images``.
        gate: A gate with a dial.
        images: Of the validation split; the test split has no part in what a budget means.
        batch_size: Images that walk together.
    """
    found = []
    for position in measured_positions(POSITIONS):
        turned = torch.full((len(images),), position, device=images.images.device)
        records = evaluate_gate(
            backbone, gate, images, batch_size=batch_size, budget=gate.budget, positions=turned
        )
        computation = float(records.computation(backbone.costs).mean())
        found.append(CurvePoint(computation, records.accuracy))
    return MeasuredDial(Dial(computations=tuple(p.computation for p in found)), tuple(found))
