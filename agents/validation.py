"""How good the gate is so far: the deterministic gate on the validation split, logged, and the best one kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from agents.callbacks import BoundaryCallback, Lifecycle
from agents.deploy import deploy
from agents.tracking import TensorBoard
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.cost import CostTable
from dfs_rl.data import ImageSet
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.run_gate import evaluate_gate
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.masks import gated_budget
from dfs_rl.gating.reward import RewardWeights, Verdict, step_cost, terminal_reward
from dfs_rl.gating.storage import StoredGate
from dfs_rl.reporting.options_plot import option_histogram_image
from dfs_rl.runs import RunFolder

_HIGHEST = "validation.highest"

GateT = TypeVar("GateT", bound=StoredGate)


def rewards_of(
    records: GateRecords, costs: CostTable, weights: RewardWeights, *, budget: float | None
) -> Tensor:
    """Return what the environment would have paid for each walk in ``records``, float64 ``[n]``."""
    spent = costs.fractions(records.options)
    verdict = Verdict(records.predictions, records.correct, records.log_likelihood)
    allowed = None if budget is None else gated_budget(costs, budget)
    terminal = terminal_reward(weights, verdict, spent, gated_budget=allowed)
    return terminal - step_cost(weights, spent)


def is_as_good(rewards: Tensor, highest: Tensor) -> bool:
    """Say whether a later gate is no worse than the highest so far, but for chance.

    Args:
        rewards: Of each image under the later gate, ``[n]``.
        highest: Of the same images under the gate with the highest mean so far.

    Returns:
        Whether its mean lies at most one standard error, of the paired difference, below.
    """
    difference = rewards - highest
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean() >= -error)


@dataclass(frozen=True, kw_only=True)
class ValidationSetup:
    """What a gate is validated on.

    Attributes:
        images: The validation split.
        reward: What each of its images is worth under a gate, ``[n]``.
        every: Steps between two validations.
    """

    images: ImageSet
    reward: Callable[[GateRecords, CostTable], Tensor]
    every: int


class Validator(Generic[GateT]):
    """Measures gates on the validation split, logs what it finds and keeps the best.

    What counts is the mean reward of the deterministic gate on the validation split, under the weights
    that the agent learns from. The best is the latest gate that is within one standard error of the
    highest: the highest of many noisy figures is often an early gate with luck, and later ones, which
    explored more, deserve the benefit of the doubt. Either way the figure flatters; report another split.

    Args:
        setup: What to validate on.
        backbone: Gives the backbone as it is now.
        keep: Keeps a gate that is the best so far.
        run: The run folder, for ``metrics.jsonl``.
        board: TensorBoard.
        report: Told about each validation: steps, and the record that was logged.
        resumed: The ``state`` and ``tensors`` of the run that is continued, or ``None``.
    """

    def __init__(
        self,
        setup: ValidationSetup,
        *,
        backbone: Callable[[], WalkableBackbone],
        keep: Callable[[GateT], None],
        run: RunFolder,
        board: TensorBoard,
        report: Callable[[int, Mapping[str, Any]], None],
        resumed: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.setup = setup
        self.backbone = backbone
        self._keep = keep
        self._run = run
        self._board = board
        self._report = report
        self._validated_at: int | None = None
        self._highest: Tensor | None = None
        self.best: dict[str, Any] | None = None
        if resumed is not None:
            state, tensors = resumed
            self._validated_at, self.best = state["validated_at"], state["best"]
            self._highest = tensors[_HIGHEST]

    @property
    def state(self) -> dict[str, object]:
        """What a checkpoint needs to keep, as JSON values."""
        return {"validated_at": self._validated_at, "best": self.best}

    def tensors(self) -> dict[str, Tensor]:
        """Return what else a checkpoint needs to keep."""
        return {} if self._highest is None else {_HIGHEST: self._highest}

    def is_due(self, timesteps: int) -> bool:
        """Whether none was made yet, or the time for the next one has come."""
        last, every = self._validated_at, self.setup.every
        return last is None or timesteps // every > last // every

    def validate(self, gate: GateT, timesteps: int) -> None:
        """Measure ``gate``, and keep it if it is the best."""
        setup, backbone = self.setup, self.backbone()
        records = evaluate_gate(backbone, gate, setup.images, budget=gate.budget)
        histogram = records.histogram(len(backbone.options))
        rewards = setup.reward(records, backbone.costs)
        figures = {
            "accuracy": records.accuracy,
            "computation": float(records.computation(backbone.costs).mean()),
            "reward": float(rewards.mean()),
            "patterns": records.patterns,
        }
        record = {
            "kind": "validation",
            "timesteps": timesteps,
            **figures,
            "histogram": histogram.tolist(),
        }
        self._run.log(record)
        self._board.scalars(
            {f"val/{key}": float(value) for key, value in figures.items()}, timesteps
        )
        picture = option_histogram_image(histogram.tolist(), backbone.options)
        self._board.image("val/options", picture, timesteps)
        if self._highest is None or is_as_good(rewards, self._highest):
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
        name: What tables and plots call the gate.
        budget: Upper bound on each image's computation in percent that the gate is trained for; ``None`` for none.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        validator: Validator[LearnedGate],
        *,
        name: str,
        budget: float | None,
    ) -> None:
        super().__init__(lifecycle)
        self._validator = validator
        self._name = name
        self._budget = budget

    def between_updates(self, timesteps: int) -> None:
        """Validate if it is time."""
        if not (self._validator.is_due(timesteps) or self.ended):
            return
        backbone = self._validator.backbone()
        gate = deploy(
            self.algorithm,
            backbone.options,
            feature_macs=backbone.feature_macs,
            name=self._name,
            budget=self._budget,
        )
        self._validator.validate(gate, timesteps)
