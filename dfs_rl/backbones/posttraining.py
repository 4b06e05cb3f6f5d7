"""Calibration after training: a pretrained network made fit for gating by looking at images, without labels and without training."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.calibration import (
    calibrate_norms,
    calibrate_steps,
    copy_full_norms,
    measure_features,
)
from dfs_rl.backbones.fractionalized.backbone import Fractionalized
from dfs_rl.backbones.settings import uniform
from dfs_rl.cost import FULL, SKIP
from dfs_rl.data import ImageSet
from dfs_rl.errors import DataError
from dfs_rl.seeding import torch_generator

_STEP_IMAGES = 128
_BATCH = 256
_ROUNDS = 12  # passes over the menu that measure the norms, as after training
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
        DataError: If there are fewer than two images, or they are of another shape.
    """
    if images.dim() != len(backbone.image_shape) + 1 or len(images) < 2:  # noqa: PLR2004 - a variance needs two
        raise DataError(
            f"images are {list(images.shape)}; calibration needs at least 2 of {list(backbone.image_shape)}."
        )
    first = images[:_STEP_IMAGES]
    if isinstance(backbone, Fractionalized):
        backbone.measure(first)
    else:
        calibrate_steps(backbone, first, parts=[*backbone.never_gated, backbone.blocks])
    copy_full_norms(backbone)
    n_layers = len(backbone.blocks)
    lower = [bits for bits in backbone.options if bits not in (SKIP, FULL)]
    settings = [uniform(bits, n_layers) for _ in range(_ROUNDS) for bits in lower]
    batches = (images[rows] for rows in _rows(len(images), seed))
    calibrate_norms(backbone, batches, settings, keep_full=True)
    backbone.eval()
    per_batch = 4 * _BATCH * sum(backbone.probe_sizes)
    fitting = min(_FEATURE_BATCHES, max(1, _FEATURE_BYTES // per_batch))
    some = list(itertools.islice(_rows(len(images), seed), fitting))
    labelled = (ImageSet(images[rows], _predicted(backbone, images[rows])) for rows in some)
    measure_features(backbone, labelled, torch_generator(seed, "features"))


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
