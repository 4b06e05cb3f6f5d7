"""Point of a gate for all budgets that its run ships, also while it is still in training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dfs_rl.experiments.cascade_config import TrainCascadeConfig
from dfs_rl.experiments.config import GateTrainingConfig
from dfs_rl.gating.budget_conditioning import BudgetConditioning


class ShippedPoint(NamedTuple):
    """Cost in percent and accuracy in percent on val."""

    computation: float
    accuracy: float


def shipped_preference(
    config: GateTrainingConfig | TrainCascadeConfig,
    measured: BudgetConditioning,
    preference: float,
) -> float:
    """Return the preference that a gate is set to after its training.

    It belongs to the budget or the bound on the loss of accuracy, or the nearest that the gate can
    hold; without either, it is ``preference``.
    """
    if config.budget is not None:
        return measured.preference_for_budget(max(config.budget, measured.budget_range[0]))
    if config.max_accuracy_drop is not None:
        drop = max(config.max_accuracy_drop, measured.smallest_accuracy_drop)
        return measured.preference_for_accuracy_drop(drop)
    return preference


def shipped_point(
    config: GateTrainingConfig,
    points: Sequence[tuple[float, float]],
    *,
    preference: float,
    full_precision_accuracy: float,
) -> ShippedPoint:
    """Return the point that would ship of a gate with a validated curve.

    Args:
        config: Configuration of the training.
        points: Computation and accuracy in percent, from the lowest preference to the highest.
        preference: Preference that the gate is set to without a budget.
        full_precision_accuracy: Accuracy of the backbone at its largest bits, in percent.
    """
    computations, accuracies = zip(*points, strict=True)
    measured = BudgetConditioning(
        computations=computations,
        accuracies=accuracies,
        full_precision_accuracy=full_precision_accuracy,
    )
    at = shipped_preference(config, measured, preference)
    accuracy = float(np.interp(at, measured.preferences, accuracies))
    return ShippedPoint(measured.computation_at(at), accuracy)
