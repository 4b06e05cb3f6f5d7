"""Post-training quantization: calibrate a pretrained network on images alone, without training."""

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
from dfs_rl.quantization.norms import BatchNormPerBits, other_batch_norms
from dfs_rl.training.calibration import (
    CALIBRATION_BATCH,
    calibrate_scales,
    copy_full_norms,
    measure_features,
)
from dfs_rl.utils.seeding import torch_generator

_STEP_IMAGES = 128
_MIN_IMAGES = 2  # needed for a variance
_ROUNDS = 12  # batches to measure the norms, as in SupernetConfig


@torch.no_grad()
def calibrate(backbone: Backbone, images: Tensor, *, seed: int = 0) -> None:
    """Set quantizer scales, norms, probes and feature statistics of a pretrained network.

    Full precision stays unchanged. The probes learn the network's predictions at full precision.

    Args:
        backbone: Backbone, changed in place and left in evaluation mode.
        images: Images, uint8 or float in [0, 1], ``[n, c, h, w]``; some hundreds suffice, some
            thousands give better probes. A gate must not learn from the same images.
        seed: Seed of the order of images and of the mixes for the features.

    Raises:
        ConfigError: If ``backbone`` is no backbone.
        DataError: If there are fewer than two images, or they have another shape, type or range.
    """
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}; make one of a model with fractionalize "
            "first."
        )
    check_pixels(images)
    if tuple(images.shape[1:]) != backbone.image_shape or len(images) < _MIN_IMAGES:
        raise DataError(
            f"images are {list(images.shape)}; calibration needs at least {_MIN_IMAGES} of "
            f"{list(backbone.image_shape)}."
        )
    first = images[next(_rows(len(images), seed))[:_STEP_IMAGES]]  # they may be sorted by class
    if isinstance(backbone, Fractionalized):
        backbone.measure(first)
    else:
        calibrate_scales(backbone, first, parts=[*backbone.never_gated, backbone.blocks])
    copy_full_norms(backbone)
    _match_norms(backbone, (images[rows] for rows in _rows(len(images), seed)))
    batches = (images[rows] for rows in _rows(len(images), seed))
    labelled = (_labelled(backbone, batch) for batch in batches)
    measure_features(backbone, labelled, torch_generator(seed, "features"))


class _Matching:
    """Batch norm that learns statistics of low bits while it runs in evaluation mode.

    The output at low bits gets full precision's mean and deviation over images, channel by channel.
    Averages in training mode give the same only if a trained norm's statistics match the images;
    otherwise, as after a change of data, they normalise anew.
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
        **settings: Any,  # noqa: ANN401 - those of batch_norm
    ) -> Tensor:
        row = mean.storage_offset() // len(mean)
        new_variance, new_mean = torch.var_mean(
            x.float(), dim=[d for d in range(x.dim()) if d != 1], correction=0
        )
        n, old_mean, old_variance = self.seen.get(row, (0, new_mean, new_variance))
        our_mean = old_mean.lerp(new_mean, 1 / (n + 1))
        our_variance = old_variance.lerp(new_variance, 1 / (n + 1))
        self.seen[row] = (n + 1, our_mean, our_variance)
        norm, last = self.norm, len(self.norm.bits) - 1
        if row != last:
            _, full_mean, full_variance = self.seen[last]
            stretch = ((our_variance + norm.epsilon) / (full_variance + norm.epsilon)).sqrt()
            mean.copy_(our_mean - (full_mean - norm.running_mean[last]) * stretch)
            wanted = (norm.running_var[last] + norm.epsilon) * stretch.square()
            variance.copy_((wanted - norm.epsilon).clamp(min=0.0))
        return functional.batch_norm(x, mean, variance, weight, bias, **settings)


def _match_norms(backbone: Backbone, batches: Iterator[Tensor]) -> None:
    """Set the statistics of all lower bit widths so that outputs match those of full precision."""
    backbone.eval()
    if not any(isinstance(module, BatchNormPerBits) for module in backbone.blocks.modules()):
        return
    largest_first = [bits for bits in reversed(backbone.options.values) if bits != SKIP]
    with other_batch_norms(backbone.blocks, _Matching):
        for batch in itertools.islice(batches, _ROUNDS):
            for bits in largest_first:
                backbone(batch, bits)


def _labelled(backbone: Backbone, images: Tensor) -> ImageSet:
    """Return images in bytes, with the predictions of the largest bit width as labels."""
    logits: Tensor = backbone(images, backbone.options[backbone.options.full])
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return ImageSet(pixels, logits.argmax(dim=1))


def _rows(n: int, seed: int) -> Iterator[Tensor]:
    """Yield shuffled batches of row numbers without end."""
    size = min(CALIBRATION_BATCH, n)
    for epoch in itertools.count():
        order = torch.randperm(n, generator=torch_generator(seed, "calibration", epoch))
        for begin in range(0, n - size + 1, size):
            yield order[begin : begin + size]
