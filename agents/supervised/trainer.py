"""Base of the trainers without an environment: batches, optimizer and checkpoint state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.lagrangian import LagrangeMultipliers
from dfs_rl.agents.validation import ValidationState
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.data import ImageSet
from dfs_rl.data.batching import epoch_batches
from dfs_rl.errors import CheckpointError, ConfigError, TrainingError
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.utils.checkpoint import (
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
)
from dfs_rl.utils.config import NonNegativeInt
from dfs_rl.utils.seeding import torch_generator

_N_MULTIPLIERS = 9
"""Number of Lagrange multipliers of a budget-conditioned gate."""


Metrics = dict[str, float | None]
"""Metrics of one step, see ``step_metrics``."""


@dataclass(frozen=True, kw_only=True)
class GateTask:
    """Task of a gate, independent of the method, for a training of ``steps`` steps.

    ``target`` maps preferences to mean budgets of the gated layers as fractions, float64 ``[n]`` in
    and out; it is called with preference 1 for a gate for one budget. A target that is not positive
    raises ConfigError.
    """

    backbone: GatedBackbone  # in training form, in evaluation mode
    frozen: GatedBackbone  # the same in inference form
    gate: LearnedGate  # trained in place
    images: ImageSet
    target: Callable[[Tensor], Tensor]
    steps: int
    seed: int

    def __post_init__(self) -> None:
        if not bool((self.target(torch.tensor([0.0, 1.0], dtype=torch.float64)) > 0).all()):
            raise ConfigError(
                "the budget leaves nothing for the gated layers; it must be above what the gate "
                "and the fixed parts cost."
            )


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """State of a ``GateTrainer`` in a checkpoint, without tensors."""

    steps: NonNegativeInt
    multipliers: list[float]
    backbone_steps: NonNegativeInt | None = None
    executed_everything: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SupervisedState:
    """State of a training in a checkpoint, without tensors, with the number of records logged.

    Without a validation the selection of the best gate starts over.
    """

    trainer: TrainerState
    metrics: NonNegativeInt
    validation: ValidationState | None


class GateTrainer(ABC):
    """Base of the trainers of a gate, with one batch per step.

    All randomness follows from the seed and the number of steps, so training resumes at any step.
    """

    def __init__(self, config: SupervisedConfig, task: GateTask) -> None:
        self.gate = task.gate
        self.frozen = task.frozen
        self.steps = 0
        self._config = config
        self._task = task
        self._multipliers = LagrangeMultipliers(
            _N_MULTIPLIERS if task.gate.budget_conditioning is not None else 1,
            config.multiplier,
            config.multiplier_learning_rate,
        )
        self._batch_size = min(config.batch_size, len(task.images))
        self._order: tuple[int, list[Tensor]] = (-1, [])
        self._optimizer = torch.optim.Adam(task.gate.parameters(), lr=config.learning_rate)

    def step(self) -> Metrics:
        """Train the gate on one batch."""
        batch = self._task.images.subset(self._rows())
        self.gate.train()
        metrics = self._learn(batch)
        self.steps += 1
        return metrics

    @abstractmethod
    def _learn(self, batch: ImageSet) -> Metrics:
        """Train the gate on ``batch`` with one call of ``_descend``."""

    @property
    def progress(self) -> float:
        """Completed share of the training, in [0, 1]."""
        return self.steps / self._task.steps

    def _generator(self, name: str) -> torch.Generator:
        """Return the random generator of this step's draws for one purpose."""
        device = self._task.images.labels.device
        return torch_generator(self._task.seed, name, self.steps, device=device)

    def _descend(self, loss: Tensor) -> None:
        """Take a step of Adam with a learning rate annealed along a cosine to zero."""
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"training stopped at step {self.steps}: its loss is {loss.item()}; "
                "a smaller learning_rate may help."
            )
        faded = 0.5 * (1.0 + math.cos(math.pi * self.progress))
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * faded
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.gate.parameters(), self._config.max_grad_norm)
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and moments for a checkpoint."""
        return module_tensors(self.gate, "gate") | optimizer_tensors(self._optimizer, "optimizer")

    @property
    def state(self) -> dict[str, object]:
        """Other state for a checkpoint, as JSON values."""
        return {"steps": self.steps, "multipliers": self._multipliers.values.tolist()}

    def restore(self, tensors: Mapping[str, Tensor], state: TrainerState) -> None:
        """Restore the training; CheckpointError if ``tensors`` or ``state`` do not fit it."""
        try:
            restore_module(self.gate, tensors, "gate")
            restore_optimizer(self._optimizer, tensors, "optimizer")
        except (LookupError, RuntimeError, ValueError) as error:
            raise CheckpointError("the checkpoint does not fit this run's gate.") from error
        self.steps = state.steps
        self._multipliers.restore(state.multipliers)

    def _rows(self) -> Tensor:
        """Return the image indices of the next step; an epoch has each image at most once."""
        n, size, seed = len(self._task.images), self._batch_size, self._task.seed
        epoch, place = divmod(self.steps, n // size)
        if self._order[0] != epoch:
            order = epoch_batches(n, size, seed=seed, epoch=epoch)
            self._order = (epoch, list(order))
        return self._order[1][place]


def step_metrics(
    logits: Tensor,
    labels: Tensor,
    *,
    spent: float,
    multiplier: float,
    divergence: float | None = None,
    backbone: float | None = None,
) -> Metrics:
    """Return the metrics of a step, from the logits ``[batch, classes]`` under the hard choices.

    ``spent`` is the mean cost of the gated layers over their budget, and ``multiplier`` its weight
    in the loss or reward, negative if cost is rewarded; ``divergence`` is that from the
    full-precision backbone, and ``backbone`` the cross-entropy of a backbone that learned, on its
    own images under the gate.
    """
    return {
        "labels": float(functional.cross_entropy(logits.detach(), labels)),
        "divergence": divergence,
        "accuracy": 100.0 * float((logits.argmax(dim=1) == labels).double().mean()),
        "spent": spent,
        "multiplier": multiplier,
        "backbone": backbone,
    }
