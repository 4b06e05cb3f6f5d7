"""Validation of the deterministic gate during training, and selection of the best gate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.budget_conditioning import estimate_curve_points
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import CostWeightRange, low_discrepancy_preferences
from dfs_rl.gating.reward import PredictionScores, RewardWeights, step_cost, terminal_reward
from dfs_rl.gating.storage import StoredGate
from dfs_rl.utils.config import NonNegativeInt

_HIGHEST = "validation.highest"

Reward = Callable[[GateRecords, CostTable], Tensor]
"""Maps records of a gate and a cost table to the reward of each image, float64 ``[n]``."""


def rewards_of(
    records: GateRecords,
    costs: CostTable,
    weights: RewardWeights,
    *,
    budget: float | None,
    cost_weight_range: CostWeightRange | None = None,
) -> Tensor:
    """Return the return of each recorded episode in the environment, float64 ``[n]``.

    ``budget`` is the per-input budget in percent. With a range of cost weights, which replace
    ``weights.cost``, image ``i`` ran at the ``i``-th of ``low_discrepancy_preferences``.
    """
    cost_weight = None
    if cost_weight_range is not None:
        preferences = low_discrepancy_preferences(len(records.options)).double()
        cost_weight = cost_weight_range.at(preferences)
    spent = costs.fractions(records.options)
    if records.earlier is not None:  # each pass but one pays for the fixed parts too
        fixed = costs.fixed_cost(gate_macs=records.gate_macs)
        spent = spent + records.earlier.total(lambda options: costs.fractions(options) + fixed)
    scores = PredictionScores(records.predictions, records.correct, records.log_likelihood)
    left = None if budget is None else gated_budget(costs, budget, gate_macs=records.gate_macs)
    terminal = terminal_reward(weights, scores, spent, gated_budget=left, cost_weight=cost_weight)
    return terminal - step_cost(weights, spent, cost_weight=cost_weight)


def is_not_worse(rewards: Tensor, highest: Tensor) -> bool:
    """Return whether a gate is at most one standard error worse than the best one so far.

    Both have the reward of each image, ``[n]``; ``highest`` has the highest mean so far.
    """
    difference = rewards - highest
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean() >= -error)


@dataclass(frozen=True, kw_only=True)
class BestMetrics:
    """Metrics of the best gate in a checkpoint."""

    timesteps: NonNegativeInt
    accuracy: float
    computation: float
    reward: float
    patterns: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class ValidationState:
    """State of a ``Validator`` in a checkpoint; ``None`` before the first validation."""

    validated_at: NonNegativeInt | None
    best: BestMetrics | None


class Validator:
    """Evaluates gates on the validation split and selects the best one.

    The criterion is the mean reward of the deterministic gate under its training reward. The best
    gate is the latest one within one standard error of the highest mean, because the highest of
    many noisy means often belongs to an early, lucky gate. The metrics of the best gate are biased
    upwards; report those of another split.

    There are ``every`` steps between two validations, and ``total`` steps of the training. A
    budget-conditioned gate has ``repeats`` episodes per image, each at another budget; their mean
    is the image's reward. ``backbone`` returns the current backbone. ``records`` are those of the
    latest validation; repeats follow the images in order.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        reward: Reward,
        every: int,
        total: int,
        repeats: int = 1,
        backbone: Callable[[], GatedBackbone],
    ) -> None:
        self.images = images
        self.backbone = backbone
        self.best: dict[str, Any] | None = None
        self.records: GateRecords | None = None
        self._reward, self._every, self._total, self._repeats = reward, every, total, repeats
        self._validated_at: int | None = None
        self._highest: Tensor | None = None

    @property
    def state(self) -> dict[str, object]:
        """State for a checkpoint, as JSON values."""
        return {"validated_at": self._validated_at, "best": self.best}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        return {} if self._highest is None else {_HIGHEST: self._highest}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore a checkpoint; CheckpointError if it lacks the rewards of these images."""
        self._validated_at, self.best = state["validated_at"], state["best"]
        self._highest = tensors.get(_HIGHEST)
        if self._highest is None or self._highest.shape != (len(self.images),):
            raise CheckpointError(
                "the checkpoint does not fit this run: it lacks the rewards of its "
                f"{len(self.images)} validation images."
            )

    def is_due(self, timesteps: int) -> bool:
        """Return whether to validate: at the start, after ``every`` steps and at the end."""
        last, every = self._validated_at, self._every
        return last is None or timesteps // every > last // every or timesteps >= self._total

    def validate(self, gate: StoredGate, timesteps: int) -> tuple[dict[str, Any], bool]:
        """Evaluate ``gate``; return the record for the metrics, and True if it is the best."""
        backbone, images, preferences = self.backbone(), self.images, None
        if gate.budget_conditioning is not None:
            images = images.subset(torch.arange(len(images)).repeat(self._repeats))
            preferences = low_discrepancy_preferences(len(images)).to(images.images.device)
        records = evaluate_gate(backbone, gate, images, budget=gate.budget, preferences=preferences)
        self.records = records
        rewards = self._reward(records, backbone.costs)  # [repeats * images]
        rewards = rewards.view(-1, len(self.images)).mean(dim=0)  # [images]
        computation = records.computation(backbone.costs)
        points = [(float(computation.mean()), records.accuracy)]
        if preferences is not None:
            along = estimate_curve_points(computation, records.correct, preferences.cpu())
            points = [(point.computation, point.accuracy) for point in along]
        figures = {
            "accuracy": records.accuracy,
            "computation": float(computation.mean()),
            "reward": float(rewards.mean()),
            "patterns": records.patterns,
        }
        is_best = self._highest is None or is_not_worse(rewards, self._highest)
        if is_best:
            self.best = {"timesteps": min(timesteps, self._total), **figures}
        if self._highest is None or rewards.mean() > self._highest.mean():
            self._highest = rewards
        self._validated_at = timesteps
        record = {
            "kind": "validation",
            "timesteps": min(timesteps, self._total),  # the last update may end later
            "progress": min(1.0, timesteps / self._total),
            **figures,
            "points": points,
            "histogram": records.histogram(backbone.costs.n_actions).tolist(),
        }
        return record, is_best
