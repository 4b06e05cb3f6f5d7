"""What a gate for all budgets costs, and gets right, at each position of its dial."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.evaluator import BATCH_SIZE, evaluate_gate
from dfs_rl.gating.base import Gate
from dfs_rl.gating.budget_conditioning import (
    MIN_PREFERENCE_GAP,
    BudgetConditioning,
    preference_grid,
)
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.networks import LearnedGate

N_PREFERENCES = 9
"""How many are measured at least, evenly spaced."""
_MAX_PREFERENCES = 33
_MAX_LOG_COST_CHANGE = math.log(1.2)
"""Change of the logarithm of what a gate costs, above which another position is measured between two."""
_N_SEGMENTS = 8
"""Of the dial, whose images together give a point."""


class BudgetCalibration(NamedTuple):
    """What ``calibrate_budget_conditioning`` finds.

    Attributes:
        budget_conditioning: A dial with its ``computations``.
        points: What the gate costs and gets right at each measured position.
    """

    budget_conditioning: BudgetConditioning
    points: tuple[CurvePoint, ...]


def gate_text(gate: Gate) -> str:
    """Say what a gate for all budgets is turned to, or what a cascade does; empty for any other, and where the dial was not measured."""
    if isinstance(gate, CascadeGate):
        return gate.description
    if (
        not isinstance(gate, LearnedGate)
        or gate.budget_conditioning is None
        or not gate.budget_conditioning.computations
    ):
        return ""
    costs = gate.budget_conditioning.computation_at(gate.preference)
    return f"learned all budgets and is turned to where images of the validation split cost {costs:.3g} %"


def estimate_curve_points(
    computation: Tensor, correct: Tensor, preferences: Tensor
) -> list[CurvePoint]:
    """Estimate a gate's curve from images of which each was walked at a position of its own.

    Images of one stretch of the dial make a point. A gate that spends more is taken to be at least
    as accurate: points that say otherwise, which among so few images are chance, are pooled
    (isotonic regression), so that the curve's area is not flattered by its luckiest points.

    Args:
        computation: Of each image in percent, ``[n]``.
        correct: Whether it was classified rightly, bool ``[n]``.
        preferences: In [0, 1], ``[n]``.

    Returns:
        A point for each stretch that has images, cheapest first.
    """
    segment = (preferences.double() * _N_SEGMENTS).long().clamp(max=_N_SEGMENTS - 1)  # [n]
    inside = [segment == number for number in range(_N_SEGMENTS)]
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


def calibrate_budget_conditioning(
    backbone: WalkableBackbone,
    gate: LearnedGate,
    images: ImageSet,
    *,
    batch_size: int = BATCH_SIZE,
) -> BudgetCalibration:
    """Walk images at evenly spaced positions of a gate's dial, and at more of them where its cost changes fast.

    Args:
        backbone: The backbone, on the device of ``images``.
        gate: A gate with a dial.
        images: Of the validation split; the test split has no part in what a budget means.
        batch_size: Images that walk together.
    """

    def measure(preference: float) -> CurvePoint:
        image_preferences = torch.full((len(images),), preference, device=images.images.device)
        records = evaluate_gate(
            backbone,
            gate,
            images,
            batch_size=batch_size,
            budget=gate.budget,
            preferences=image_preferences,
        )
        return CurvePoint(float(records.computation(backbone.costs).mean()), records.accuracy)

    found = {preference: measure(preference) for preference in preference_grid(N_PREFERENCES)}
    while len(found) < _MAX_PREFERENCES:
        middle = _steepest_midpoint({at: point.computation for at, point in found.items()})
        if middle is None:
            break
        found[middle] = measure(middle)
    preferences = tuple(sorted(found))
    points = tuple(found[preference] for preference in preferences)
    return BudgetCalibration(
        BudgetConditioning(
            computations=tuple(p.computation for p in points), preferences=preferences
        ),
        points,
    )


def _steepest_midpoint(computations: Mapping[float, float]) -> float | None:
    """Return the middle of the two neighbouring positions between which cost changes most; ``None`` where it is smooth everywhere."""
    changes = {
        (start, end): abs(math.log(computations[end] / computations[start]))
        for start, end in pairwise(sorted(computations))
        if end - start > MIN_PREFERENCE_GAP
    }
    steep = [(change, ends) for ends, change in changes.items() if change > _MAX_LOG_COST_CHANGE]
    return sum(max(steep)[1]) / 2 if steep else None
