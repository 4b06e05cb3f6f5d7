"""Measured statistics: quantizer scales, norms per option, features for gates, exits."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.backbones.probe import EXIT_GRID, confidence, describe, fit_probe
from dfs_rl.data import ImageSet
from dfs_rl.quantization.modules import (
    BatchNormPerBits,
    FractionalLayer,
    FractionalLinear,
    NormPerBits,
)
from dfs_rl.training.bit_sampling import BitMix, sample_low_mix, uniform_mix

CALIBRATION_BATCH = 256
_FEATURE_BATCHES = 80  # each at another mix; 20,000 images
_FEATURE_BYTES = 2**29  # all pooled activations; binds for deep networks only
_STILL = 1e-12  # variance below which a feature counts as constant


@torch.no_grad()
def calibrate_scales(
    backbone: Backbone,
    images: Tensor,
    *,
    parts: Iterable[nn.Module],
    batch_statistics: bool = False,
) -> None:
    """Set the quantizer scales of ``parts`` from one pass of the largest bit width.

    Args:
        backbone: Backbone, changed in place.
        images: Images, uint8 ``[batch, c, h, w]``.
        parts: Modules with the quantizers.
        batch_statistics: True to normalise with these images' statistics, as an untrained network
            requires; the running statistics stay unchanged.
    """
    layers = [
        module for part in parts for module in part.modules() if isinstance(module, FractionalLayer)
    ]
    was_training = backbone.training
    measured = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train(batch_statistics)
    for layer in layers:
        layer.calibrate_scales(on=True)
    backbone(images, backbone.options[backbone.options.full])
    for layer in layers:
        layer.calibrate_scales(on=False)
    for name, buffer in backbone.named_buffers():
        buffer.copy_(measured[name])
    backbone.train(was_training)


def copy_full_norms(backbone: Backbone) -> None:
    """Copy the norms of the largest bit width to all others."""
    for module in backbone.blocks.modules():
        if isinstance(module, NormPerBits):
            module.copy_full_norm()


@torch.no_grad()
def calibrate_norms(backbone: Backbone, batches: Iterator[Tensor], mixes: Iterable[BitMix]) -> None:
    """Replace all running statistics by plain averages over batches, one for each mix.

    An average over batches at fixed weights is less noisy than the running mean of training.

    Args:
        backbone: Backbone, changed in place and left in evaluation mode.
        batches: Images, uint8 ``[batch, c, h, w]``.
        mixes: Bits of each pass; a norm whose bits never occur keeps its statistics.
    """
    norms = [module for module in backbone.modules() if isinstance(module, BatchNormPerBits)]
    for norm in norms:
        norm.average_statistics(on=True)
    backbone.train()
    for mix in mixes:
        backbone(next(batches), mix)
    for norm in norms:
        norm.average_statistics(on=False)
    backbone.eval()


def feature_batches(backbone: Backbone) -> int:
    """Return the number of batches of ``CALIBRATION_BATCH`` images for ``measure_features``."""
    per_batch = 4 * CALIBRATION_BATCH * sum(backbone.probe_sizes)
    return min(_FEATURE_BATCHES, max(1, _FEATURE_BYTES // per_batch))


@torch.no_grad()
def measure_features(
    backbone: Backbone, batches: Iterable[ImageSet], generator: torch.Generator
) -> None:
    """Fit the probes and set ``feature_mean`` and ``feature_std`` under random mixes.

    Args:
        backbone: Backbone, changed in place.
        batches: Images of the train split with their labels; each batch runs at one mix.
        generator: Random generator of the mixes.
    """
    n_layers = len(backbone.blocks)
    parts: list[list[Tensor]] = [[] for _ in range(n_layers)]
    labels = []
    frozen = backbone.to_inference()
    for batch in batches:
        labels.append(batch.labels)
        hidden = frozen.stem(batch.images)
        mix = sample_low_mix(backbone.options, n_layers, generator)
        for layer, bits in enumerate(mix):
            parts[layer].append(backbone.parts(hidden))
            hidden = frozen.layers[layer](hidden, bits)
    backbone.feature_mean.zero_()
    backbone.feature_std.fill_(1.0)
    for layer, probe in enumerate(backbone.probes):
        seen = torch.cat(parts[layer])  # [images, channels, parts]
        parts[layer].clear()
        fit_probe(cast("FractionalLinear", probe), seen.flatten(1), torch.cat(labels))
        features = describe(seen, probe(seen.flatten(1))).double()
        mean, deviation = _usual(features)
        backbone.feature_mean[layer, : len(mean)] = mean
        backbone.feature_std[layer, : len(mean)] = deviation


@torch.no_grad()
def fit_exits(
    backbone: Backbone,
    after: Sequence[int],
    batches: Iterable[Tensor],
    generator: torch.Generator,
) -> None:
    """Replace the exits of a trained backbone; nothing else changes.

    Each head learns the network's probabilities at the largest bit width, without labels, from
    activations under random mixes.

    Args:
        backbone: Backbone, changed in place.
        after: Numbers of gated layers before the exits.
        batches: Images of the train split, uint8 ``[batch, c, h, w]``; each batch runs at one
            mix.
        generator: Random generator of the mixes.

    Raises:
        ConfigError: If there are no such layers.
    """
    backbone.set_exits(after)
    heads = backbone.exit_heads
    if heads is None:
        return
    n_layers = len(backbone.blocks)
    frozen = backbone.to_inference()
    parts: list[list[Tensor]] = [[] for _ in after]
    answers = []
    for images in batches:
        stem = frozen.stem(images)
        whole = uniform_mix(frozen.options[frozen.options.full], n_layers)
        answers.append(frozen.head(run_layers(frozen, stem, whole)).softmax(dim=1))
        hidden = stem
        mix = sample_low_mix(frozen.options, n_layers, generator)
        for layer in range(max(after) + 1):
            if layer in heads:
                pooled = backbone.parts(hidden, grid=EXIT_GRID).flatten(1)
                parts[after.index(layer)].append(pooled)
            hidden = frozen.layers[layer](hidden, mix[layer])
    targets = torch.cat(answers)
    for i, head in enumerate(heads.heads):
        seen = torch.cat(parts[i])  # [images, channels * parts]
        parts[i].clear()
        fit_probe(cast("FractionalLinear", head), seen, targets)
        mean, deviation = _usual(confidence(head(seen)).double())
        heads.confidence_mean[i] = mean
        heads.confidence_std[i] = deviation


def _usual(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature ``[images, features]``."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    # A deviation of one leaves a constant feature at zero.
    deviation = torch.where(deviation.square() > _STILL, deviation, torch.ones_like(mean))
    return mean, deviation
