"""Validation of the deterministic gate during training; the best gate is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from dfs_rl.agents.callbacks import BoundaryCallback, Lifecycle
from dfs_rl.agents.logging import Log, TensorBoard
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.budget_conditioning import estimate_curve_points
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.budget_conditioning import CostWeightRange, low_discrepancy_preferences
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.reward import PredictionScores, RewardWeights, step_cost, terminal_reward
from dfs_rl.gating.storage import StoredGate
from dfs_rl.reporting.options_plot import option_histogram_image
from dfs_rl.utils.config import NonNegativeInt

_HIGHEST = "validation.highest"

GateT = TypeVar("GateT", bound=StoredGate)


def rewards_of(
    records: GateRecords,
    costs: CostTable,
    weights: RewardWeights,
    *,
    budget: float | None,
    cost_weight_range: CostWeightRange | None = None,
) -> Tensor:
    """Return the environment's return of each episode in ``records``, float64 ``[n]``.

    Args:
        records: Of the validation images; for all budgets, image ``i`` at the ``i``-th of
            ``low_discrepancy_preferences``.
        costs: The backbone's.
        weights: Reward weights.
        budget: Upper bound on each image's computation in percent; ``None`` for none.
        cost_weight_range: Range of the cost weight; ``None`` for ``weights.cost`` alone.
    """
    charged = None
    if cost_weight_range is not None:
        charged = cost_weight_range.at(low_discrepancy_preferences(len(records.options)).double())
    spent = costs.fractions(records.options)
    scores = PredictionScores(records.predictions, records.correct, records.log_likelihood)
    allowed = None if budget is None else gated_budget(costs, budget, gate_macs=records.gate_macs)
    terminal = terminal_reward(weights, scores, spent, gated_budget=allowed, cost_weight=charged)
    return terminal - step_cost(weights, spent, cost_weight=charged)


def is_not_worse(rewards: Tensor, highest: Tensor) -> bool:
    """Return whether a later gate is at most one standard error worse than the best so far.

    Args:
        rewards: Of each image under the later gate, ``[n]``.
        highest: Of the same images under the gate with the highest mean so far.
    """
    difference = rewards - highest
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean() >= -error)


@dataclass(frozen=True, kw_only=True)
class BestMetrics:
    """Figures of the gate that was kept, on the validation split."""

    timesteps: NonNegativeInt
    accuracy: float
    computation: float
    reward: float
    patterns: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class ValidationState:
    """What ``Validator.state`` holds.

    Attributes:
        validated_at: Steps of the last validation.
        best: The gate that was kept.
    """

    validated_at: NonNegativeInt | None
    best: BestMetrics | None


Reward = Callable[[GateRecords, CostTable], Tensor]
"""Return the reward of each validation image under a gate, float64 ``[n]``."""


class Validator(Generic[GateT]):
    """Measures gates on the validation split, logs their figures and keeps the best.

    The criterion is the mean reward of the deterministic gate under the weights that it learns
    from. A gate for all budgets runs each image under one budget, or under ``repeats`` of them. The
    best gate is the latest within one standard error of the highest mean: the highest of many noisy
    figures is often an early gate with luck. The figure is biased upwards; report another split.

    Args:
        images: The validation split.
        reward: Of each image.
        every: Steps between two validations.
        total: Steps of the whole training.
        repeats: Runs of each image by a gate for all budgets; an image's reward is their mean.
        backbone: Returns the backbone as it is now.
        keep: Keeps a gate that is the best so far.
        log: Appends a record to the metrics.
        board: TensorBoard.
        report: Receives steps and record of each validation.
        resumed: ``state`` and ``tensors`` of the run that is resumed, or ``None``.

    Raises:
        CheckpointError: If ``resumed`` is of another validation split.
    """

    def __init__(  # noqa: PLR0913
        self,
        images: ImageSet,
        *,
        reward: Reward,
        every: int,
        total: int,
        repeats: int = 1,
        backbone: Callable[[], WalkableBackbone],
        keep: Callable[[GateT], None],
        log: Log,
        board: TensorBoard,
        report: Callable[[int, Mapping[str, Any]], None],
        resumed: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.images = images
        self.backbone = backbone
        self._reward, self._every, self._total, self._repeats = reward, every, total, repeats
        self._keep = keep
        self._log = log
        self._board = board
        self._report = report
        self._validated_at: int | None = None
        self._highest: Tensor | None = None
        self.best: dict[str, Any] | None = None
        if resumed is not None:
            state, tensors = resumed
            self._validated_at, self.best = state["validated_at"], state["best"]
            highest = tensors.get(_HIGHEST)
            if highest is None or highest.shape != (len(images),):
                raise CheckpointError(
                    "the checkpoint does not fit this run: it lacks the rewards of its "
                    f"{len(images)} validation images."
                )
            self._highest = highest

    @property
    def state(self) -> dict[str, object]:
        """What a checkpoint needs to keep, as JSON values."""
        return {"validated_at": self._validated_at, "best": self.best}

    def tensors(self) -> dict[str, Tensor]:
        """Return what else a checkpoint needs to keep."""
        return {} if self._highest is None else {_HIGHEST: self._highest}

    def is_due(self, timesteps: int) -> bool:
        """Whether none was made yet, or the time for the next one has come."""
        last = self._validated_at
        return last is None or timesteps // self._every > last // self._every

    def validate(self, gate: GateT, timesteps: int) -> None:
        """Measure ``gate``, and keep it if it is the best."""
        backbone, images, preferences = self.backbone(), self.images, None
        if (
            gate.budget_conditioning is not None
        ):  # each run under another budget: together they cover the range
            if self._repeats > 1:
                images = images.subset(torch.arange(len(images)).repeat(self._repeats))
            preferences = low_discrepancy_preferences(len(images)).to(images.images.device)
        records = evaluate_gate(backbone, gate, images, budget=gate.budget, preferences=preferences)
        histogram = records.histogram(backbone.costs.n_actions)
        rewards = self._reward(records, backbone.costs)  # [walks * images]
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
        record = {
            "kind": "validation",
            "timesteps": timesteps,
            "progress": min(1.0, timesteps / self._total),
            **figures,
            "points": points,
            "histogram": histogram.tolist(),
        }
        self._log(record)
        self._board.scalars(
            {f"val/{key}": float(value) for key, value in figures.items()}, timesteps
        )
        picture = option_histogram_image(histogram.tolist(), backbone.options)
        self._board.image("val/options", picture, timesteps)
        if self._highest is None or is_not_worse(rewards, self._highest):
            self.best = {"timesteps": timesteps, **figures}
            self._keep(gate)
        if self._highest is None or rewards.mean() > self._highest.mean():
            self._highest = rewards
        self._validated_at = timesteps
        self._report(timesteps, record)


class Validation(BoundaryCallback):
    """Validates a policy's gate before the first update, every so many steps and after the last.

    Args:
        lifecycle: See ``BoundaryCallback``.
        validator: Does it.
        export: Turns the policy into the gate that would ship.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        validator: Validator[LearnedGate],
        *,
        export: Callable[[BaseAlgorithm], LearnedGate],
    ) -> None:
        super().__init__(lifecycle)
        self._validator = validator
        self._export = export

    def between_updates(self, timesteps: int) -> None:
        """Validate if it is time."""
        if not (self._validator.is_due(timesteps) or self.ended):
            return
        self._validator.validate(self._export(self.algorithm), timesteps)
