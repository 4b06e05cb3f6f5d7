"""Co-training: the backbone learns under the gate's own choices, in turns with it or jointly.

A supernet serves every mix of options; a gate uses few of them. Here the weights specialise to that
mix, the second step of DFS (AAAI 2020), optionally with the full-precision pass as teacher. They
learn from the train split, and the gate from the agent split, whose labels the weights do not know.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.callbacks import BoundaryCallback, Lifecycle
from dfs_rl.agents.cotraining_config import CoTrainConfig
from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.data import Dataset, augment
from dfs_rl.errors import CheckpointError, TrainingError
from dfs_rl.gating.action_masks import action_masks
from dfs_rl.gating.execution import run_head, run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import observe
from dfs_rl.utils.checkpoint import check_finite, optimizer_tensors, restore_optimizer
from dfs_rl.utils.seeding import torch_generator


class CoTrainLosses(NamedTuple):
    """Losses of one step, each unweighted.

    Attributes:
        gated: Cross-entropy of the gated pass.
        divergence: Kullback-Leibler divergence of the gated pass from the full-precision pass, None
            if it has no weight.
        full: Cross-entropy of the full-precision pass, likewise.
    """

    gated: float
    divergence: float | None
    full: float | None


class CoTrainStep(NamedTuple):
    """Loss of the next step.

    Attributes:
        loss: A scalar with gradients.
        losses: Its parts.
    """

    loss: Tensor
    losses: CoTrainLosses


def gated_rollout(
    backbone: WalkableBackbone,
    gate: LearnedGate,
    images: Tensor,
    generator: torch.Generator,
    *,
    budget: float | None,
    greedy: bool = False,
) -> Tensor:
    """Run images under a gate, with gradients of the backbone but not of the gate.

    Args:
        backbone: A training form.
        gate: The policy's actor.
        images: uint8 ``[batch, c, h, w]``.
        generator: Draws the options.
        budget: Upper bound on each image's computation in percent, fixed parts and gate included;
            only options within it are taken, as in deployment.
        greedy: Take the likeliest options instead of drawing them.

    Returns:
        Logits ``[batch, classes]``.
    """
    # With a dial, every image has a price of its own, as it has for the gate.
    preferences = None
    if gate.budget_conditioning is not None:
        preferences = torch.rand(len(images), generator=generator, device=images.device)
    gate.reset(len(images))
    state = run_stem(backbone, images)
    while state.layer < backbone.costs.n_layers:
        with torch.no_grad():
            seen = observe(
                backbone, state, budget=budget, gate_macs=gate.macs, preferences=preferences
            )
            logits = gate(seen.features, seen.layer, seen.context)
            allowed = action_masks(
                backbone.costs, state.layer, state.spent, budget, gate_macs=gate.macs
            )
            logits = logits.masked_fill(~allowed, -torch.inf)
            if greedy:
                options = logits.argmax(dim=1)
            else:
                options = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        state = run_layer(backbone, state, options)
    return run_head(backbone, state)


class CoTrainer:
    """Makes supervised steps on a backbone under a gate's choices.

    Random draws follow from the seed and the number of steps, so only weights and moments are
    saved.

    Args:
        config: Hyperparameters.
        backbone: The training form; changed in place, its norms stay in evaluation mode.
        dataset: Its train split teaches.
        seed: Seed of the run.
        budget: Upper bound on computation in percent that the gate keeps to, or ``None``.
        greedy: Whether the gate takes its likeliest options while it learns.
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
        self._config = config
        self._images = dataset.train.to(backbone.image_mean.device)
        self._flip = dataset.flip
        self._seed = seed
        self._budget = budget
        self._greedy = greedy
        self._weights = [p for p in backbone.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(self._weights, lr=config.learning_rate)

    @property
    def images_seen(self) -> int:
        """Training images used so far, repeats counted."""
        return self.steps * self._config.batch_size

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Exclude the weights from gradients within the block."""
        for weight in self._weights:
            weight.requires_grad = False
        try:
            yield
        finally:
            for weight in self._weights:
                weight.requires_grad = True

    def step(self, gate: LearnedGate) -> CoTrainLosses:
        """Make one step under ``gate``.

        Raises:
            TrainingError: If the loss or the weights are no longer finite.
        """
        loss, losses = self.prepare_step(gate)
        loss.backward()  # type: ignore[no-untyped-call]
        self.finish_step()
        return losses

    def prepare_step(self, gate: LearnedGate) -> CoTrainStep:
        """Return the loss of the next step under ``gate``, for a backward pass and ``finish_step``.

        Raises:
            TrainingError: If the loss is no longer finite.
        """
        config = self._config
        self._optimizer.zero_grad()
        images, labels = self._batch()
        generator = torch_generator(
            self._seed, "co-train options", self.steps, device=labels.device
        )
        gated = gated_rollout(
            self.backbone, gate, images, generator, budget=self._budget, greedy=self._greedy
        )
        own = functional.cross_entropy(gated, labels)
        loss, losses = own, CoTrainLosses(float(own.detach()), None, None)
        if config.distillation or config.full_precision:
            full = self.backbone(images)
            teacher = full.detach().log_softmax(dim=1)
            divergence = functional.kl_div(
                gated.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
            )
            label = functional.cross_entropy(full, labels)
            loss = loss + config.distillation * divergence + config.full_precision * label
            losses = losses._replace(
                divergence=float(divergence.detach()), full=float(label.detach())
            )
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: its loss is {loss.item()}; "
                "a smaller cotrain.learning_rate may help."
            )
        return CoTrainStep(loss, losses)

    def finish_step(self) -> None:
        """Take an optimizer step along the gradients of the prepared step's loss.

        Raises:
            TrainingError: If weights are no longer finite.
        """
        self._optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in self.backbone.parameters()):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: weights are no longer finite; "
                "a smaller cotrain.learning_rate may help."
            )
        self.steps += 1

    def freeze(self) -> InferenceBackbone:
        """Return the frozen form of the backbone as it is now, in float32."""
        return self.backbone.to_inference().to(self._images.labels.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments for a checkpoint."""
        weights = {
            f"backbone.{name}": tensor for name, tensor in self.backbone.state_dict().items()
        }
        return weights | optimizer_tensors(self._optimizer, "backbone_optimizer")

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go back to where ``tensors`` was called after ``steps`` steps.

        Raises:
            CheckpointError: If the tensors are another backbone's.
        """
        weights = {
            name.removeprefix("backbone."): t
            for name, t in tensors.items()
            if name.startswith("backbone.")
        }
        try:
            self.backbone.load_state_dict(weights)
            check_finite(self.backbone, "the checkpoint")
            restore_optimizer(self._optimizer, tensors, "backbone_optimizer")
        except (LookupError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                "the checkpoint's backbone does not fit this run's backbone."
            ) from error
        self.steps = steps

    def _batch(self) -> tuple[Tensor, Tensor]:
        images, labels = self._images.images, self._images.labels
        generator = torch_generator(self._seed, "co-train images", self.steps)
        rows = torch.randint(len(labels), (self._config.batch_size,), generator=generator).to(
            labels.device
        )
        return augment(images[rows], generator, flip=self._flip), labels[rows]


class CoTraining(BoundaryCallback):
    """Makes a step of the backbone after each update of the gate, and puts it into the environment.

    Args:
        lifecycle: See ``BoundaryCallback``.
        trainer: Makes the steps.
        export: Returns the policy's gate.
        renew: Puts the changed backbone into the environment.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        trainer: CoTrainer,
        *,
        export: Callable[[BaseAlgorithm], LearnedGate],
        renew: Callable[[], None],
    ) -> None:
        super().__init__(lifecycle)
        self._trainer = trainer
        self._export = export
        self._renew = renew

    def between_updates(self, timesteps: int) -> None:
        """Make a step, but not before the gate's first update."""
        if timesteps == 0:
            return
        losses = self._trainer.step(self._export(self.algorithm))
        for name, value in losses._asdict().items():
            if value is not None:
                self.logger.record(f"backbone/{name}", value)
        self._renew()
