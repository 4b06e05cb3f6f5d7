"""Supervised training of gates: hard choices forward, gradients through a relaxation.

Gumbel and DFS share this loop; they differ in the choice of options and in the cost weight.

A trainer with a ``CoTrainer`` trains gate and backbone jointly, as the second phase of DFS does.
One backward pass covers the backbone's loss on the train split and the gate's loss on the agent
split. The backbone gets no gradients from the gate's images, whose labels it must not use, and the
gate gets none from the backbone's images, on which hardly any choice leads to a wrong answer. Only
the gate's loss has a cost term, because an option's cost does not depend on the weights.
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.cotraining import CoTrainer, CoTrainLosses
from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.straight_through import Estimator, straight_through_rollout
from dfs_rl.agents.supervised.trainer import GateTask, GateTrainer, StepLosses, accuracy_of
from dfs_rl.data import ImageSet
from dfs_rl.utils.seeding import torch_generator


class RelaxedTrainer(GateTrainer):
    """Base of the trainers by supervision alone.

    A budget-conditioned gate runs each image at a random preference.

    Args:
        config: Hyperparameters.
        task: Task of the gate.
        cotrainer: Trainer of the task's backbone; ``None`` for a fixed backbone.
    """

    def __init__(
        self, config: SupervisedConfig, task: GateTask, cotrainer: CoTrainer | None = None
    ) -> None:
        super().__init__(config, task)
        self._cotrainer = cotrainer

    @abstractmethod
    def _estimator(self) -> Estimator:
        """Return the function that turns logits into choices at this step."""

    @abstractmethod
    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        """Return the weight of each image's relative cost in the loss, float64 ``[batch]``.

        Args:
            preferences: Preference of each image, ``[batch]``.
            spent: Mean cost of the batch relative to the budgets.
        """

    @abstractmethod
    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        """Update the cost weights after a step with relative costs ``relative``, ``[batch]``."""

    @property
    def executed_everything(self) -> bool:
        """True if the backbone may learn; the gate of DFS first learns to execute everything."""
        return True

    def _learn(self, batch: ImageSet) -> StepLosses:
        config, task = self._config, self._task
        preferences = self._preferences(batch.images)
        with self._cotrainer.frozen_weights() if self._cotrainer else nullcontext():
            rollout = straight_through_rollout(
                task.backbone,
                self.frozen,
                self.gate,
                batch.images,
                self._estimator(),
                preferences=preferences,
            )
        labels = functional.cross_entropy(rollout.logits, batch.labels)
        where = torch.ones(len(batch.images)) if preferences is None else preferences.cpu()
        relative = rollout.spent / task.target(where.double()).to(rollout.spent.device)  # [batch]
        spent = float(relative.detach().mean())
        weights = self._cost_weights(where, spent)
        loss = labels + (weights.to(relative.device) * relative).mean()
        divergence: Tensor | None = None
        if config.distillation:
            divergence = self._divergence(batch.images, rollout.logits)
            loss = loss + config.distillation * divergence
        taught = self._descend_together(loss)
        self._adjust(where, relative.detach().cpu())
        return StepLosses(
            labels=float(labels.detach()),
            divergence=None if divergence is None else float(divergence.detach()),
            accuracy=accuracy_of(rollout.logits, batch.labels),
            spent=spent,
            multiplier=float(weights.mean()),
            backbone=None if taught is None else taught.gated,
        )

    def _descend_together(self, loss: Tensor) -> CoTrainLosses | None:
        """Update the gate and, if it learns, the backbone; return the losses of the backbone."""
        if self._cotrainer is None or not self.executed_everything:
            self._descend(loss)
            return None
        prepared = self._cotrainer.prepare_step(self.gate)
        self._descend(loss + prepared.loss)
        self._cotrainer.finish_step()
        self.frozen = self._cotrainer.freeze()
        return prepared.losses

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint, with those of a co-trained backbone."""
        return super().tensors() | (self._cotrainer.tensors() if self._cotrainer else {})

    @property
    def state(self) -> dict[str, object]:
        """Other state for a checkpoint, as JSON values."""
        steps = self._cotrainer.steps if self._cotrainer else 0
        return super().state | {
            "executed_everything": self.executed_everything,
            "backbone_steps": steps,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """Restore gate and backbone from ``tensors`` and ``state``.

        Raises:
            CheckpointError: If they do not fit this training.
        """
        super().restore(tensors, state)
        if self._cotrainer is not None:
            self._cotrainer.restore(tensors, int(str(state["backbone_steps"])))
            self.frozen = self._cotrainer.freeze()

    def _preferences(self, images: Tensor) -> Tensor | None:
        """Sample a preference for each image; return ``None`` for a gate for one budget."""
        if self.gate.budget_conditioning is None:
            return None
        generator = torch_generator(self._task.seed, "dial", self.steps, device=images.device)
        return torch.rand(len(images), generator=generator, device=images.device)

    def _divergence(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from the full-precision backbone's predictions."""
        frozen = self.frozen
        with torch.no_grad():
            hidden = frozen.stem(images)
            for layer in frozen.layers:
                hidden = layer(hidden, frozen.options[frozen.options.full])
            teacher = frozen.head(hidden).log_softmax(dim=1)
        return functional.kl_div(
            logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
        )
