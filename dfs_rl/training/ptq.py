"""Calibration after training: a pretrained network made fit for gating by looking at images, without labels and without training."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.conversion.backbone import Fractionalized
from dfs_rl.costs import SKIP
from dfs_rl.data import ImageSet
from dfs_rl.data.pixels import check_pixels
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.quantization.modules import BatchNormPerBits
from dfs_rl.training.bit_sampling import uniform
from dfs_rl.training.calibration import calibrate_steps, copy_full_norms, measure_features
from dfs_rl.utils.seeding import torch_generator

_STEP_IMAGES = 128
_BATCH = 256
_ROUNDS = 12  # batches that measure the norms, as after training
_FEATURE_BATCHES = 80  # each with a setting of its own
_FEATURE_BYTES = 2**29


@torch.no_grad()
def calibrate(backbone: Backbone, images: Tensor, *, seed: int = 0) -> None:
    """Set what a pretrained network needs to run at few bits and to be gated: steps, norms, probes and feature statistics.

    Full precision stays as it was. The probes learn to predict what the network itself says in full precision.

    Args:
        backbone: Changed in place; left in evaluation mode.
        images: uint8 or float in [0, 1], ``[n, c, h, w]``; some hundreds do, some thousands make better probes. They must not be
            those that a gate learns from.
        seed: Of the order of images and of the settings that features are measured under.

    Raises:
        ConfigError: If it is no backbone.
        DataError: If there are fewer than two images, or they are of another shape, type or range.
    """
    _check(backbone, images)
    first = images[:_STEP_IMAGES]
    if isinstance(backbone, Fractionalized):
        backbone.measure(first)
    else:
        calibrate_steps(backbone, first, parts=[*backbone.never_gated, backbone.blocks])
    copy_full_norms(backbone)
    _match_norms(backbone, (images[rows] for rows in _rows(len(images), seed)))
    per_batch = 4 * _BATCH * sum(backbone.probe_sizes)
    fitting = min(_FEATURE_BATCHES, max(1, _FEATURE_BYTES // per_batch))
    some = list(itertools.islice(_rows(len(images), seed), fitting))
    labelled = (ImageSet(_bytes(images[rows]), _predicted(backbone, images[rows])) for rows in some)
    measure_features(backbone, labelled, torch_generator(seed, "features"))


def _check(backbone: object, images: object) -> None:
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}; make one of a model with fractionalize first."
        )
    check_pixels(images)
    assert isinstance(images, Tensor)
    if tuple(images.shape[1:]) != backbone.image_shape or len(images) < 2:  # noqa: PLR2004 - a variance needs two
        raise DataError(
            f"images are {list(images.shape)}; calibration needs at least 2 of {list(backbone.image_shape)}."
        )


def _bytes(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


class _Matching:
    """A batch norm that learns statistics of low bits while it runs in evaluation mode.

    What comes out at few bits gets the mean and the deviation over images that full precision has there, channel by channel. Where a
    trained norm's statistics are those of the images, that is what averages in training mode give; where they are not, as after a
    change of data, the network is still followed and not normalised anew.
    """

    def __init__(self, norm: BatchNormPerBits) -> None:
        self.norm = norm
        self.seen: dict[int, tuple[int, Tensor, Tensor]] = {}

    def __call__(
        self,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        **settings: Any,  # noqa: ANN401 - whatever batch_norm takes
    ) -> Tensor:
        row = mean.storage_offset() // len(mean)
        new_variance, new_mean = torch.var_mean(
            x.float(), dim=[d for d in range(x.dim()) if d != 1], correction=0
        )
        n, old_mean, old_variance = self.seen.get(row, (0, new_mean, new_variance))
        ours = (
            n + 1,
            old_mean.lerp(new_mean, 1 / (n + 1)),
            old_variance.lerp(new_variance, 1 / (n + 1)),
        )
        self.seen[row] = ours
        last = len(self.norm.bits) - 1
        if row != last:
            _, full_mean, full_variance = self.seen[last]
            stretch = ((ours[2] + self.norm.epsilon) / (full_variance + self.norm.epsilon)).sqrt()
            mean.copy_(ours[1] - (full_mean - self.norm.running_mean[last]) * stretch)
            wanted = (self.norm.running_var[last] + self.norm.epsilon) * stretch.square()
            variance.copy_((wanted - self.norm.epsilon).clamp(min=0.0))
        return functional.batch_norm(x, mean, variance, weight, bias, **settings)


def _match_norms(backbone: Backbone, batches: Iterator[Tensor]) -> None:
    """Give every norm of the gated layers statistics for each lower bit width under which the network says what it did."""
    n_layers = len(backbone.blocks)
    norms = [module for module in backbone.blocks.modules() if isinstance(module, BatchNormPerBits)]
    backbone.eval()
    for norm in norms:
        norm.batch_norm = _Matching(norm)
    dearest_first = [bits for bits in reversed(backbone.options.values) if bits != SKIP]
    for _ in range(_ROUNDS if norms else 0):
        batch = next(batches)
        for bits in dearest_first:
            backbone(batch, uniform(bits, n_layers))
    for norm in norms:
        norm.batch_norm = functional.batch_norm


def _predicted(backbone: Backbone, images: Tensor) -> Tensor:
    logits: Tensor = backbone(images, backbone.options[backbone.options.full])
    return logits.argmax(dim=1)


def _rows(n: int, seed: int) -> Iterator[Tensor]:
    """Yield shuffled batches of row numbers without end."""
    size = min(_BATCH, n)
    for epoch in itertools.count():
        order = torch.randperm(n, generator=torch_generator(seed, "calibration", epoch))
        for begin in range(0, n - size + 1, size):
            yield order[begin : begin + size]
