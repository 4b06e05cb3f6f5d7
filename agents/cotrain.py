"""Training the backbone under the gate's own choices, in turns with the gate.

A supernet has to serve every mix of options; a gate ends up using few of them. Here the weights specialise to that mix, which is the
second step of DFS (AAAI 2020), with the full-precision pass as the teacher.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from torch.nn import functional

from agents.callbacks import BoundaryCallback, Lifecycle
from agents.checkpoint import optimizer_tensors, restore_optimizer
from agents.hyperparameters import CoTrainConfig
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.backbones.resnet import ResNet
from dfs_rl.data import Dataset, augment
from dfs_rl.errors import CheckpointError, TrainingError
from dfs_rl.gating.learned import LearnedGate
from dfs_rl.gating.masks import action_masks
from dfs_rl.gating.observation import observe
from dfs_rl.gating.walk import finish, start, step
from dfs_rl.seeding import torch_generator


class CoTrainLosses(NamedTuple):
    """Losses of one step, each unweighted.

    Attributes:
        gated: Cross-entropy of the gated pass.
        divergence: Kullback-Leibler divergence of the gated pass from the full-precision pass.
        full: Cross-entropy of the full-precision pass.
    """

    gated: float
    divergence: float
    full: float


def sampled_walk(
    backbone: WalkableBackbone,
    gate: LearnedGate,
    images: Tensor,
    generator: torch.Generator,
    *,
    budget: float | None,
) -> Tensor:
    """Walk images with options drawn from the gate's distribution, recording gradients of the backbone but not of the gate.

    Args:
        backbone: A training form.
        gate: The policy's actor.
        images: uint8 ``[batch, c, h, w]``.
        generator: Draws the options.
        budget: Upper bound on each image's computation in percent, fixed parts and gate included; only options that keep it are
            drawn, as they are where the gate is deployed.

    Returns:
        Logits ``[batch, classes]``.
    """
    # With a dial, every image has a price of its own, as it has for the gate.
    positions = None
    if gate.dial is not None:
        positions = torch.rand(len(images), generator=generator, device=images.device)
    gate.reset(len(images))
    state = start(backbone, images)
    while state.layer < backbone.costs.n_layers:
        with torch.no_grad():
            seen = observe(backbone, state, budget=budget, positions=positions)
            logits = gate(seen.features, seen.layer, seen.context)
            allowed = action_masks(
                backbone.costs, state.layer, state.spent, budget, gate_macs=gate.macs
            )
            chances = logits.masked_fill(~allowed, -torch.inf).softmax(dim=1)
            options = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        state = step(backbone, state, options)
    return finish(backbone, state)


class CoTrainer:
    """Makes supervised steps on a backbone under a gate's choices.

    Every random draw is a function of the seed and of the number of steps made, so nothing but weights and moments needs saving.

    Args:
        config: How to learn.
        backbone: The training form; changed in place, its norms staying in evaluation mode.
        dataset: Its train split, which the backbone was trained on, teaches.
        seed: Seed of the run.
        budget: Upper bound on computation in percent that the gate keeps to, or ``None``.
    """

    def __init__(
        self,
        config: CoTrainConfig,
        backbone: ResNet,
        dataset: Dataset,
        *,
        seed: int,
        budget: float | None,
    ) -> None:
        self.backbone = backbone.eval()
        self.steps = 0
        self._config = config
        self._images = dataset.train.to(backbone.image_mean.device)
        self._flip = dataset.flip
        self._seed = seed
        self._budget = budget
        self._optimizer = torch.optim.Adam(
            [p for p in backbone.parameters() if p.requires_grad], lr=config.learning_rate
        )

    @property
    def images_seen(self) -> int:
        """Training images used so far, repeats counted."""
        return self.steps * self._config.batch_size

    def step(self, gate: LearnedGate) -> CoTrainLosses:
        """Make one step under ``gate``.

        Raises:
            TrainingError: If the loss is no longer finite.
        """
        config = self._config
        images, labels = self._batch()
        device = labels.device
        generator = torch_generator(self._seed, "co-train options", self.steps, device=device)
        gated = sampled_walk(self.backbone, gate, images, generator, budget=self._budget)
        full = self.backbone(images)
        teacher = full.detach().log_softmax(dim=1)
        losses = (
            functional.cross_entropy(gated, labels),
            functional.kl_div(
                gated.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True
            ),
            functional.cross_entropy(full, labels),
        )
        loss = losses[0] + config.distillation * losses[1] + config.full_precision * losses[2]
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: its loss is {loss.item()}; a smaller cotrain.learning_rate may help."
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in self.backbone.parameters()):
            raise TrainingError(
                f"co-training stopped at backbone step {self.steps}: weights are no longer finite; a smaller "
                "cotrain.learning_rate may help."
            )
        self.steps += 1
        return CoTrainLosses(*(float(value.detach()) for value in losses))

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
            restore_optimizer(self._optimizer, tensors, "backbone_optimizer")
        except (RuntimeError, ValueError) as error:
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
        pad = images.shape[-1] // 8  # the usual 4 pixels of 32
        return augment(images[rows], generator, pad=pad, flip=self._flip), labels[rows]


class CoTraining(BoundaryCallback):
    """Follows each update of the gate with a step of the backbone, and renews the frozen form that the environment walks.

    Args:
        lifecycle: See ``BoundaryCallback``.
        trainer: Makes the steps.
        export: Turns the policy into a gate.
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
            self.logger.record(f"backbone/{name}", value)
        self._renew()
