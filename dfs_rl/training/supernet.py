"""Training of a supernet, a backbone in which every mix of bit options works.

Each step runs one batch twice: at the largest bit width with the labels, and at a sampled low
mix (uniform or not, skips included) with the first pass's probabilities as its target (Yu and
Huang, "Universally Slimmable Networks", ICCV 2019; Yu et al., "Any-Precision Deep Neural Networks",
AAAI 2021). The outputs of the layers can be targets too (Romero et al., "FitNets", ICLR 2015). The
first epochs can run the first pass alone, so that quantizers start from trained weights.

With the recipe ``elastic`` half of the images run once more in the second pass, with skipped
layers, see ``elastic_mixes`` (Cai et al., "Once-for-All", ICLR 2020). All its images share the
norms of a layer that runs, as the images of a gate's batch do; skipped layers correct their
shortcut.

With the recipe ``adn`` (Kang et al., "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS
2024) the first pass runs the whole network, and the second, from the first epoch on, the base
network, which skips every path. Once the quantizers of low bits are initialized, half of the second
passes are a sampled low mix as above. The combinations of paths in between are not trained.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.costs import FULL, SKIP
from dfs_rl.data import Dataset, ImageSet, augment, epoch_batches
from dfs_rl.data.augment import check_pad
from dfs_rl.data.batching import batches
from dfs_rl.errors import CheckpointError, ConfigError, TrainingError
from dfs_rl.training.bit_sampling import BitMix, elastic_mixes, sample_student_mixes
from dfs_rl.training.calibration import (
    CALIBRATION_BATCH,
    calibrate_norms,
    calibrate_scales,
    copy_full_norms,
    fit_skips,
    measure_features,
)
from dfs_rl.training.mixed_batch import in_parts, run_parts
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils import precision
from dfs_rl.utils.checkpoint import module_tensors, optimizer_tensors, restore_optimizer
from dfs_rl.utils.constants import ELASTIC_PARTS, OptimizerName, Recipe
from dfs_rl.utils.seeding import torch_generator

_STEP_IMAGES = 512  # images that set quantizer scales
_EVALUATED = 500  # images of a batch that measures accuracy
_USUAL: dict[OptimizerName, tuple[float, float, float | None]] = {
    "sgd": (0.1, 5e-4, None),
    "adamw": (1e-3, 0.05, 1.0),
}
"""Default learning rate, weight decay and maximum norm of the gradient of an optimizer."""


class StepLosses(NamedTuple):
    """Unweighted losses of a step; ``distillation`` is None without a second pass."""

    labels: float
    distillation: float | None


def learning_rate(progress: float, *, peak: float, warmup: float = 0.05) -> float:
    """Return the learning rate after a share ``progress`` of the training, in [0, 1].

    It rises linearly over the ``warmup`` share to ``peak``, then falls along half a cosine to zero.
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """Make an optimizer with weight decay on weights but not on quantizer scales, norms and biases.

    Parameters without gradients are left out. ``momentum`` is the Nesterov momentum of SGD.
    """
    trained = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n.endswith(".weight")], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if not n.endswith(".weight")], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def accuracy_of(backbone: Backbone, images: ImageSet, bits: int | BitMix) -> float:
    """Return the accuracy in percent of the inference form with all images at the same bits."""
    frozen = backbone.to_inference()
    right = 0
    with torch.inference_mode():
        for batch in batches(images, _EVALUATED):
            hidden = run_layers(frozen, frozen.stem(batch.images), bits)
            right += int((frozen.head(hidden).argmax(dim=1) == batch.labels).sum())
    return 100.0 * right / len(images)


def uniform_accuracies(backbone: Backbone, images: ImageSet) -> dict[str, float]:
    """Return the accuracy in percent of every meaningful uniform mix, by its bits."""
    return {str(b): accuracy_of(backbone, images, b) for b in backbone.meaningful_bits}


def depth_accuracies(backbone: Backbone, images: ImageSet) -> dict[str, dict[str, float]]:
    """Return the accuracy in percent at nested depths, see ``BackboneInfo.depth_accuracy``.

    The depths are those of half of each stage, rounded up, and of one layer in each.
    """
    depths = {tuple((n + 1) // 2 for n in backbone.stages), (1,) * len(backbone.stages)}
    return {
        "-".join(map(str, depth)): {
            str(b): accuracy_of(backbone, images, backbone.at_depths(depth, b))
            for b in backbone.meaningful_bits
        }
        for depth in sorted(depths - {backbone.stages}, reverse=True)
    }


class SupernetTrainer:
    """Trains a backbone in place, step by step, for ``epochs`` passes over the train split.

    All randomness is a function of (seed, epoch, step), so a training can resume at any step. The
    ``recipe`` says what the second pass of a step runs.

    Attributes:
        epoch: Number of completed epochs.
        step: Number of completed steps of the current one.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: Dataset,
        config: SupernetConfig,
        *,
        epochs: int,
        seed: int,
        device: torch.device,
        recipe: Recipe = "supernet",
    ) -> None:
        if epochs < 1:
            raise ConfigError(f"epochs is {epochs}; allowed are 1 or more.")
        self.config, self.recipe = config, recipe
        self.epochs, self.seed, self.device = epochs, seed, device
        self.label_weight = self.distillation_weight = 1.0
        if recipe == "adn":
            self.label_weight, self.distillation_weight = config.alpha, 1.0 - config.alpha
        usual_weights = {"supernet": 0.0, "elastic": 0.3, "adn": backbone.feature_weight}
        self.feature_weight = (
            usual_weights[recipe] if config.feature_weight is None else config.feature_weight
        )
        ends = [end - 1 for end in itertools.accumulate(backbone.stages)]
        self.compared = range(len(backbone.blocks)) if recipe == "supernet" else ends
        self.warmup_epochs = int(epochs * config.warmup)
        if config.pad is not None:
            check_pad(config.pad, *dataset.image_shape[1:], name="training.pad")
        self.flip = dataset.flip
        self.images = dataset.train.to(device)
        self.backbone = backbone.to(device)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = precision.resolve(config.precision, device)
        self.epoch = self.step = 0
        self.steps_per_epoch = len(self.images) // config.batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"training.batch_size is {config.batch_size}; the train split has only "
                f"{len(self.images)} images, so allowed are 2 to {len(self.images)}."
            )
        self.full = backbone.options[backbone.options.full]
        has_low_bits = len([b for b in backbone.options if b != SKIP]) > 1
        self.has_low_mixes = has_low_bits or recipe == "elastic"
        name = backbone.optimizer if config.optimizer == "auto" else config.optimizer
        usual_lr, usual_decay, self.max_norm = _USUAL[name]
        self.lr = usual_lr if config.learning_rate is None else config.learning_rate
        self.optimizer = make_optimizer(
            name,
            backbone.named_parameters(),
            lr=self.lr,
            weight_decay=usual_decay if config.weight_decay is None else config.weight_decay,
            momentum=config.momentum,
        )
        # Without full precision as an option, the gated layers are quantized from the first step.
        calibrate_scales(
            backbone,
            self.images.images[:_STEP_IMAGES],
            parts=backbone.never_gated if self.full == FULL else [backbone],
            batch_statistics=True,
        )

    def train_epoch(self) -> Iterator[StepLosses]:
        """Run the rest of the current epoch, yielding the losses after each step."""
        epoch = self.epoch
        self._begin_epoch()
        indices = epoch_batches(
            len(self.images), self.config.batch_size, seed=self.seed, epoch=epoch
        )
        for step, rows in enumerate(indices):
            if step < self.step:
                continue
            losses = self._train_step(epoch, step, rows)
            done = step + 1 == self.steps_per_epoch
            self.epoch, self.step = (epoch + 1, 0) if done else (epoch, step + 1)
            yield losses

    def finish(self) -> Backbone:
        """Return a copy with measured norms and feature statistics, in evaluation mode."""
        backbone = self.snapshot()
        images = (batch.images for batch in self._calibration_batches())
        widths = backbone.meaningful_bits * self.config.calibration_rounds
        if self.recipe == "elastic":
            draws = torch_generator(self.seed, "depths")
            settings = [elastic_mixes(backbone, bits, draws) for bits in widths]
        else:
            settings = [[(bits,) * len(backbone.blocks)] for bits in widths]
        calibrate_norms(backbone, images, settings)
        generator = torch_generator(self.seed, "features")
        measure_features(backbone, self._calibration_batches(), generator)
        return backbone

    def snapshot(self) -> Backbone:
        """Return a copy to evaluate, with the running statistics of training.

        Raises:
            TrainingError: If weights are not finite, or quantizer scales not invertible.
        """
        for name, value in self.backbone.named_parameters():
            checked = torch.stack([value.exp(), (-value).exp()]) if "log_scale" in name else value
            if not bool(torch.isfinite(checked).all()):
                raise TrainingError(self._diverged(f"{name} is no longer finite"))
        backbone: Backbone = copy.deepcopy(self.backbone)
        return backbone.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that training changes, for a checkpoint."""
        weights = module_tensors(self.backbone, "backbone")
        return weights | optimizer_tensors(self.optimizer, "optimizer")

    def restore(self, tensors: dict[str, Tensor], epoch: int, step: int) -> None:
        """Restore the state that ``tensors()`` returned.

        Raises:
            CheckpointError: If the tensors do not fit this network.
        """
        prefix = "backbone."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            self.backbone.load_state_dict(weights)
            restore_optimizer(self.optimizer, tensors, "optimizer")
        except (IndexError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint does not fit this network: {reason}.") from error
        self.epoch, self.step = epoch, step

    def _train_step(self, epoch: int, step: int, rows: Tensor) -> StepLosses:
        progress = (epoch + step / self.steps_per_epoch) / self.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(progress, peak=self.lr)
        self.optimizer.zero_grad()
        losses = self._backward(epoch, step, self._batch(epoch, step, rows))
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.max_norm)
        self.optimizer.step()
        if not all(math.isfinite(loss) for loss in losses if loss is not None):
            raise TrainingError(self._diverged("the loss is no longer finite"))
        return losses

    def _backward(
        self,
        epoch: int,
        step: int,
        batch: ImageSet,
        *,
        weight: Tensor | None = None,
        first: int = 0,
    ) -> StepLosses:
        """Add the gradients of a step, times ``weight``, to the parameters; ``None`` means one.

        ``first`` is the number of the first image in the batch of all processes.
        """
        mixes = sample_student_mixes(
            self.backbone,
            torch_generator(self.seed, "setting", epoch, step),
            recipe=self.recipe,
            quantized=self.has_low_mixes and epoch >= self.warmup_epochs,
        )
        sizes = [len(batch)]
        if len(mixes) > 1:
            batch, sizes = in_parts(batch, ELASTIC_PARTS, first=first)
            sizes += sizes[: len(mixes) - ELASTIC_PARTS]
        n_again = sum(sizes) - len(batch)  # the first images run at a second mix
        whole = (self.full,) * len(self.backbone.blocks)
        keep = bool(mixes) and self.feature_weight > 0.0
        logits, features = self._run(batch.images, [whole], [len(batch)], keep=keep)
        label_loss = functional.cross_entropy(logits, batch.labels)
        (self.label_weight * label_loss).backward(weight)  # type: ignore[no-untyped-call]
        if not mixes:
            return StepLosses(labels=label_loss.item(), distillation=None)
        target = _with_first(logits.detach().softmax(dim=1), n_again)
        targets = [_with_first(feature.detach(), n_again) for feature in features]
        del logits, features
        logits, features = self._run(_with_first(batch.images, n_again), mixes, sizes, keep=keep)
        # The Kullback-Leibler divergence, up to the target's entropy.
        low_loss = functional.cross_entropy(logits, target)
        for ours, theirs in zip(features, targets, strict=True):
            distance = functional.mse_loss(ours.float(), theirs.float())
            low_loss = low_loss + self.feature_weight / len(targets) * distance
        scale = self.distillation_weight * len(target) / len(batch)
        (scale * low_loss).backward(weight)  # type: ignore[no-untyped-call]
        return StepLosses(labels=label_loss.item(), distillation=low_loss.item())

    def _run(
        self, images: Tensor, mixes: Sequence[BitMix], sizes: list[int], *, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits, and if ``keep`` the outputs of ``compared`` layers, see ``run_parts``."""
        backbone, features = self.backbone, []
        low = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            hidden = backbone.stem(images)
            for layer, output in enumerate(run_parts(backbone, hidden, mixes, sizes)):
                hidden = output
                if keep and layer in self.compared:
                    features.append(backbone.comparable(hidden))
            return backbone.head(hidden), features

    def _diverged(self, what: str) -> str:
        exact = ", or training.precision float32" if self.dtype == torch.bfloat16 else ""
        return (
            f"{what} in epoch {self.epoch + 1} after step {self.step}; a lower learning rate than "
            f"{self.lr:g}{exact} may help."
        )

    def _begin_epoch(self) -> None:
        if (self.epoch, self.step) == (self.warmup_epochs, 0):
            # The quantizers and norms of all options start from the network's present state.
            calibrate_scales(
                self.backbone,
                self.images.images[:_STEP_IMAGES],
                parts=self.backbone.gated,
                batch_statistics=not self.warmup_epochs,
            )
            copy_full_norms(self.backbone)
            if self.warmup_epochs:
                fit_skips(self.backbone, self.images.images[:_STEP_IMAGES])
        self.backbone.train()

    def _calibration_batches(self) -> Iterator[ImageSet]:
        """Yield augmented train images in a fixed shuffled order, without end.

        The network has fitted the plain train images: their statistics do not suit unseen images.
        """
        n, seed = len(self.images), self.seed
        size = min(CALIBRATION_BATCH, n)
        for epoch in itertools.count(self.epochs):
            order = epoch_batches(n, size, seed=seed, epoch=epoch)
            for step, rows in enumerate(order):
                yield self._batch(epoch, step, rows)

    def _batch(self, epoch: int, step: int, rows: Tensor) -> ImageSet:
        batch = self.images.subset(rows)
        draws = torch_generator(self.seed, "augment", epoch, step, device=self.device)
        images = augment(batch.images, draws, pad=self.config.pad, flip=self.flip)
        return ImageSet(images, batch.labels)


def _with_first(rows: Tensor, n: int) -> Tensor:
    """Return rows and once more the first ``n`` of them."""
    return torch.cat([rows, rows[:n]]) if n else rows
