"""Gates that learn by supervision: hard choices forward, gradients through a relaxation.

Gumbel and DFS share this loop; they differ in how options are drawn and how the budget is held.

A trainer with a ``CoTrainer`` trains gate and backbone together by one loss, as the second phase of
DFS does. The backbone's loss on images of the train split joins the gate's on the agent split in
one backward pass: the weights take no gradients from the gate's images, whose labels must stay
unknown to them, and the gate none from the weights' images, on which hardly any choice is wrong.
The cost term is the gate's alone, because an option's cost does not depend on weights.
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
    """Trains a gate by supervision; a gate for all budgets draws a budget for each image.

    Args:
        config: Hyperparameters.
        task: What to learn on.
        cotrainer: Of the task's backbone; ``None`` leaves it frozen.
    """

    def __init__(
        self, config: SupervisedConfig, task: GateTask, cotrainer: CoTrainer | None = None
    ) -> None:
        super().__init__(config, task)
        self._cotrainer = cotrainer

    @abstractmethod
    def _estimator(self) -> Estimator:
        """Return how this step turns logits into choices."""

    @abstractmethod
    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        """Return each image's weight of its cost relative to its budget, float64 ``[batch]``.

        Args:
            preferences: Budgets of the images, as positions in their range, ``[batch]``.
            spent: Mean relative cost of the batch.
        """

    @abstractmethod
    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        """Adjust the weights after a step with relative costs ``relative``, ``[batch]``."""

    @property
    def executed_everything(self) -> bool:
        """Whether the backbone may learn; DFS first learns to execute everything."""
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
        """Take a step of the gate and, if it learns, of the backbone; return its losses."""
        if self._cotrainer is None or not self.executed_everything:
            self._descend(loss)
            return None
        prepared = self._cotrainer.prepare_step(self.gate)
        self._descend(loss + prepared.loss)
        self._cotrainer.finish_step()
        self.frozen = self._cotrainer.freeze()
        return prepared.losses

    def tensors(self) -> dict[str, Tensor]:
        """See ``GateTrainer``."""
        return super().tensors() | (self._cotrainer.tensors() if self._cotrainer else {})

    @property
    def state(self) -> dict[str, object]:
        """See ``GateTrainer``."""
        steps = self._cotrainer.steps if self._cotrainer else 0
        return super().state | {
            "executed_everything": self.executed_everything,
            "backbone_steps": steps,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """See ``GateTrainer``."""
        super().restore(tensors, state)
        if self._cotrainer is not None:
            self._cotrainer.restore(tensors, int(str(state["backbone_steps"])))
            self.frozen = self._cotrainer.freeze()

    def _preferences(self, images: Tensor) -> Tensor | None:
        """Draw a budget for each image, as a position; ``None`` for a gate for one budget."""
        if self.gate.budget_conditioning is None:
            return None
        generator = torch_generator(self._task.seed, "dial", self.steps, device=images.device)
        return torch.rand(len(images), generator=generator, device=images.device)

    def _divergence(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from the full-precision network's answers."""
        frozen = self.frozen
        with torch.no_grad():
            hidden = frozen.stem(images)
            for layer in frozen.layers:
                hidden = layer(hidden, frozen.options[frozen.options.full])
            teacher = frozen.head(hidden).log_softmax(dim=1)
        return functional.kl_div(
            logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
        )
