"""Co-training: training of the backbone under the gate's choices, in alternation or jointly.

A supernet supports every mix of options, of which a gate uses few. Co-training specializes the
weights to these, as the second step of DFS does. The weights learn from the train split and the
gate from the agent split, whose labels the weights never use.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.hyperparameters import CoTrainConfig
from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.data import Dataset, augment
from dfs_rl.errors import CheckpointError, TrainingError
from dfs_rl.gating.action_masks import action_masks
from dfs_rl.gating.execution import ExecutionState, run_stem, run_to_head
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import observe
from dfs_rl.utils.checkpoint import (
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
)
from dfs_rl.utils.seeding import torch_generator


def gated_rollout(
    backbone: GatedBackbone,
    gate: LearnedGate,
    images: Tensor,
    generator: torch.Generator,
    *,
    budget: float | None,
    greedy: bool = False,
) -> Tensor:
    """Return the logits ``[batch, classes]``, with gradients for the backbone but not for the gate.

    Options are sampled, or the most likely ones if ``greedy``; those above the per-input budget, in
    percent, are masked, as in deployment.
    """
    # Under budget conditioning every image has a preference, as in the training of the gate.
    preferences = None
    if gate.budget_conditioning is not None:
        preferences = torch.rand(len(images), generator=generator, device=images.device)
    gate.reset(len(images))
    costs, macs = backbone.costs, gate.macs

    @torch.no_grad()
    def choose(state: ExecutionState) -> Tensor:
        seen = observe(backbone, state, budget=budget, gate_macs=macs, preferences=preferences)
        logits: Tensor = gate(seen.features, seen.layer, seen.context)
        allowed = action_masks(costs, state.layer, state.spent, budget, gate_macs=macs)
        logits = logits.masked_fill(~allowed, -torch.inf)
        if greedy:
            return logits.argmax(dim=1)
        return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]

    return run_to_head(backbone, run_stem(backbone, images), choose)


def divergence_from(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence from a teacher, both logits ``[batch, n]``."""
    ours, theirs = logits.log_softmax(dim=1), teacher.log_softmax(dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class CoTrainer:
    """Trains a backbone in place, by supervision under a gate's choices on the train split.

    Random draws follow from the seed and the number of steps, so only weights and moments are
    saved. The norms stay in evaluation mode. ``budget`` is the per-input budget of the gate in
    percent; with ``greedy`` it takes its most likely options in training.
    """

    def __init__(
        self,
        config: CoTrainConfig,
        backbone: Backbone,
        dataset: Dataset,
        *,
        seed: int,
        budget: float | None,
        greedy: bool = False,
    ) -> None:
        self.backbone = backbone.eval()
        self.steps = 0
        self._images = dataset.train.to(backbone.image_mean.device)
        self._config, self._flip, self._seed = config, dataset.flip, seed
        self._budget, self._greedy = budget, greedy
        self._weights = [p for p in backbone.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(self._weights, lr=config.learning_rate)

    @property
    def images_seen(self) -> int:
        """Number of training images used so far, with repeats."""
        return self.steps * self._config.batch_size

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Disable gradients of the weights."""
        for weight in self._weights:
            weight.requires_grad = False
        try:
            yield
        finally:
            for weight in self._weights:
                weight.requires_grad = True

    def step(self, gate: LearnedGate) -> dict[str, float]:
        """Train the backbone for one step under ``gate``, and return the unweighted losses."""
        loss, losses = self.prepare_step(gate)
        loss.backward()  # type: ignore[no-untyped-call]
        self.finish_step()
        return losses

    def prepare_step(self, gate: LearnedGate) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the next step, to be completed by ``finish_step``, and its terms.

        The terms are the cross-entropy of the gated pass and, unless their weights are 0, its
        divergence from the full-precision pass and the cross-entropy of that pass. A loss that is
        not finite raises TrainingError, as do such weights in ``finish_step``.
        """
        config = self._config
        self._optimizer.zero_grad()
        images, labels = self._batch()
        draws = torch_generator(self._seed, "co-train options", self.steps, device=labels.device)
        gated = gated_rollout(
            self.backbone, gate, images, draws, budget=self._budget, greedy=self._greedy
        )
        loss = functional.cross_entropy(gated, labels)
        losses = {"gated": float(loss.detach())}
        if config.distillation or config.full_precision:
            full = self.backbone(images)
            divergence = divergence_from(full.detach(), gated)
            label = functional.cross_entropy(full, labels)
            loss = loss + config.distillation * divergence + config.full_precision * label
            losses |= {"divergence": float(divergence.detach()), "full": float(label.detach())}
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: its loss is {loss.item()}; "
                "a smaller cotrain.learning_rate may help."
            )
        return loss, losses

    def finish_step(self) -> None:
        """Take the optimizer step of ``prepare_step``, after the backward pass."""
        self._optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in self.backbone.parameters()):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: weights are no longer finite; "
                "a smaller cotrain.learning_rate may help."
            )
        self.steps += 1

    def freeze(self) -> InferenceBackbone:
        """Return the current backbone in inference form, in float32."""
        return self.backbone.to_inference().to(self._images.labels.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments for a checkpoint."""
        weights = module_tensors(self.backbone, "backbone")
        return weights | optimizer_tensors(self._optimizer, "backbone_optimizer")

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore the state after ``steps`` steps; CheckpointError if ``tensors`` do not fit."""
        try:
            restore_module(self.backbone, tensors, "backbone")
            restore_optimizer(self._optimizer, tensors, "backbone_optimizer")
        except (LookupError, RuntimeError, ValueError) as error:
            sentence = "the checkpoint's backbone does not fit this run's backbone."
            raise CheckpointError(sentence) from error
        self.steps = steps

    def _batch(self) -> tuple[Tensor, Tensor]:
        images, labels = self._images.images, self._images.labels
        generator = torch_generator(self._seed, "co-train images", self.steps)
        rows = torch.randint(len(labels), (self._config.batch_size,), generator=generator)
        rows = rows.to(labels.device)
        return augment(images[rows], generator, flip=self._flip), labels[rows]
