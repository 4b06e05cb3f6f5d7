"""Cost and accuracy of a budget-conditioned gate over its preferences."""

import math
from itertools import pairwise

import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.metrics import PairedDifference, paired_difference
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.budget_conditioning import (
    MIN_PREFERENCE_GAP,
    BudgetConditioning,
    preference_grid,
)
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import StoredGate

N_PREFERENCES = 9
"""Smallest number of measured preferences, evenly spaced."""
_MAX_PREFERENCES = 33
_MAX_LOG_COST_CHANGE = math.log(1.2)
"""Change in log cost between two preferences above which their midpoint is measured too."""
_N_SEGMENTS = 8
"""Number of intervals of the preference; the images of one interval form a point."""


def estimate_curve_points(
    computation: Tensor, correct: Tensor, preferences: Tensor
) -> list[CurvePoint]:
    """Estimate a gate's curve from images that each ran at a different preference.

    The images of one interval of the preference form a point. Accuracy is assumed not to fall with
    cost: points that contradict it by chance are pooled (isotonic regression), so the hypervolume
    of the curve is not inflated by lucky points.

    The arguments are ``[n]``: computation in percent, correctness (bool), preferences in [0, 1].
    """
    segment = (preferences.double() * _N_SEGMENTS).long().clamp(max=_N_SEGMENTS - 1)  # [n]
    at_cost: dict[float, list[float]] = {}  # accuracies of the segments of equal cost
    for images in (segment == number for number in range(_N_SEGMENTS)):
        if images.any():
            cost = float(computation[images].double().mean())
            at_cost.setdefault(cost, []).append(100.0 * float(correct[images].double().mean()))
    costs, equal = zip(*sorted(at_cost.items()), strict=True)
    means = [sum(accuracies) / len(accuracies) for accuracies in equal]
    pooled = isotonic_regression(means, sample_weight=list(map(len, equal)))
    return [
        CurvePoint(cost, float(accuracy))
        for cost, accuracy, accuracies in zip(costs, pooled, equal, strict=True)
        for _ in accuracies
    ]


def calibrate_budget_conditioning(
    backbone: GatedBackbone, gate: LearnedGate, images: ImageSet
) -> BudgetConditioning:
    """Measure a gate at evenly spaced preferences, and more densely where its cost changes fast.

    The images are those of the val split: the test split must not affect the calibration.
    """

    def measure(preference: float) -> CurvePoint:
        same = torch.full((len(images),), preference, device=images.images.device)
        records = evaluate_gate(backbone, gate, images, budget=gate.budget, preferences=same)
        return CurvePoint(float(records.computation(backbone.costs).mean()), records.accuracy)

    found = {preference: measure(preference) for preference in preference_grid(N_PREFERENCES)}
    while len(found) < _MAX_PREFERENCES:
        # Computations are above 0: a learned gate has MACs.
        changes = [
            (abs(math.log(found[end].computation / found[start].computation)), (start, end))
            for start, end in pairwise(sorted(found))
            if end - start > MIN_PREFERENCE_GAP
        ]
        change, ends = max(changes, default=(0.0, (0.0, 0.0)))
        if change <= _MAX_LOG_COST_CHANGE:
            break
        middle = sum(ends) / 2
        found[middle] = measure(middle)
    preferences, points = zip(*sorted(found.items()), strict=True)
    full = _full_precision(backbone, images)
    return BudgetConditioning(
        computations=tuple(point.computation for point in points),
        preferences=preferences,
        accuracies=tuple(point.accuracy for point in points),
        full_precision_accuracy=full.accuracy,
    )


def accuracy_drop(backbone: GatedBackbone, gate: StoredGate, images: ImageSet) -> PairedDifference:
    """Return the accuracy at the largest bits minus that of a gate at its preference, in points."""
    records = evaluate_gate(backbone, gate, images, budget=gate.budget)
    return paired_difference(_full_precision(backbone, images).correct, records.correct)


def _full_precision(backbone: GatedBackbone, images: ImageSet) -> GateRecords:
    largest = (backbone.options.full,) * backbone.costs.n_layers
    return evaluate_static_table(backbone, images, largest, name="full")
