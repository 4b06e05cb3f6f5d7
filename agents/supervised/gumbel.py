"""Gumbel gate: straight-through Gumbel-softmax with Lagrange multipliers for the budget.

``docs/methods/gumbel.md`` has papers, loss and multipliers. A trainer with a ``CoTrainer`` trains
gate and backbone jointly, as the second phase of DFS does. The backbone gets no gradients from the
gate's images, whose labels it must not use, and the gate gets none from the backbone's images, on
which hardly any choice leads to a wrong answer. Only the gate's loss has a cost term, because an
option's cost does not depend on the weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.cotraining import CoTrainer, divergence_from
from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.estimators import Estimator, gumbel_choice, straight_through_rollout
from dfs_rl.agents.supervised.trainer import (
    GateTask,
    GateTrainer,
    Metrics,
    TrainerState,
    step_metrics,
)
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.data import ImageSet


class GumbelTrainer(GateTrainer):
    """Trains a Gumbel gate; a budget-conditioned one runs each image at a random preference."""

    executed_everything = True
    """True if the backbone may learn; the gate of DFS first learns to execute everything."""

    def __init__(
        self, config: SupervisedConfig, task: GateTask, cotrainer: CoTrainer | None = None
    ) -> None:
        super().__init__(config, task)
        self._cotrainer = cotrainer

    def _estimator(self) -> Estimator:
        """Return the function that turns logits into choices at this step."""
        config = self._config
        ratio = config.final_temperature / config.temperature
        return partial(
            gumbel_choice,
            temperature=config.temperature * ratio**self.progress,
            generator=self._generator("gumbel"),
        )

    def _cost_weights(self, preferences: Tensor, spent: float) -> Tensor:
        """Return the weight of each image's relative cost, whose mean is ``spent``, ``[batch]``."""
        del spent
        return self._multipliers.at(preferences)

    def _adjust(self, preferences: Tensor, relative: Tensor) -> None:
        """Update the cost weights after a step with relative costs ``relative``, ``[batch]``."""
        self._multipliers.update(preferences, relative)

    def _learn(self, batch: ImageSet) -> Metrics:
        config, task, n = self._config, self._task, len(batch.images)
        preferences = None
        if self.gate.budget_conditioning is not None:
            # The name of the random stream is part of every figure.
            generator = self._generator("dial")
            preferences = torch.rand(n, generator=generator, device=generator.device)
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
        where = torch.ones(n) if preferences is None else preferences.cpu()
        relative = rollout.spent / task.target(where.double()).to(rollout.spent.device)  # [batch]
        spent = float(relative.detach().mean())
        weights = self._cost_weights(where, spent)
        loss = labels + (weights.to(relative.device) * relative).mean()
        divergence = None
        if config.distillation:
            frozen = self.frozen
            with torch.no_grad():
                full = frozen.options[frozen.options.full]
                teacher = frozen.head(run_layers(frozen, frozen.stem(batch.images), full))
            divergence = divergence_from(teacher, rollout.logits)
            loss = loss + config.distillation * divergence
        taught = None
        if self._cotrainer is None or not self.executed_everything:
            self._descend(loss)
        else:
            own, losses = self._cotrainer.prepare_step(self.gate)
            self._descend(loss + own)
            self._cotrainer.finish_step()
            self.frozen = self._cotrainer.freeze()
            taught = losses["gated"]
        self._adjust(where, relative.detach().cpu())
        return step_metrics(
            rollout.logits,
            batch.labels,
            spent=spent,
            multiplier=float(weights.mean()),
            divergence=None if divergence is None else float(divergence.detach()),
            backbone=taught,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        return super().tensors() | (self._cotrainer.tensors() if self._cotrainer else {})

    @property
    def state(self) -> dict[str, object]:
        """Other state for a checkpoint, as JSON values."""
        return super().state | {
            "executed_everything": self.executed_everything,
            "backbone_steps": self._cotrainer.steps if self._cotrainer else 0,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: TrainerState) -> None:
        """Restore gate and backbone from ``tensors`` and ``state``."""
        super().restore(tensors, state)
        if self._cotrainer is not None:
            self._cotrainer.restore(tensors, state.backbone_steps or 0)
            self.frozen = self._cotrainer.freeze()
