"""Measured statistics: quantizer scales, norms per option, features for gates, exits."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.interfaces import WithSkip, activations, run_layers
from dfs_rl.backbones.probe import EXIT_GRID, confidence, describe, fit_probe
from dfs_rl.data import ImageSet
from dfs_rl.quantization.modules import FractionalLayer, FractionalLinear, calibrating
from dfs_rl.quantization.norms import BatchNormPerBits, NormPerBits
from dfs_rl.training.bit_sampling import BitMix, sample_low_mix
from dfs_rl.training.mixed_batch import run_parts

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
    """Set the quantizer scales of modules of a backbone from one pass of the largest bit width.

    With ``batch_statistics``, these images' statistics normalise, as an untrained network requires.
    Running statistics stay unchanged.
    """
    layers = [
        module for part in parts for module in part.modules() if isinstance(module, FractionalLayer)
    ]
    was_training = backbone.training
    measured = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train(batch_statistics)
    with calibrating(layers):
        backbone(images, backbone.options[backbone.options.full])
    for name, buffer in backbone.named_buffers():
        buffer.copy_(measured[name])
    backbone.train(was_training)


def copy_full_norms(backbone: Backbone) -> None:
    """Copy the norms of the largest bit width to all others."""
    for module in backbone.blocks.modules():
        if isinstance(module, NormPerBits):
            module.copy_full_norm()


@torch.no_grad()
def fit_skips(backbone: Backbone, images: Tensor) -> None:
    """Start what corrects skipped layers from a pass of the largest bit width in evaluation mode.

    Layers without such a correction stay as they are.
    """
    was_training = backbone.training
    backbone.eval()
    full = backbone.options[backbone.options.full]
    passed = pairwise(activations(backbone, backbone.stem(images), full))
    for layer, (hidden, output) in zip(backbone.layers, passed, strict=True):
        if isinstance(layer, WithSkip):
            layer.fit_skip(hidden, output)
    backbone.train(was_training)


@torch.no_grad()
def calibrate_norms(
    backbone: Backbone, batches: Iterator[Tensor], settings: Iterable[Sequence[BitMix]]
) -> None:
    """Replace all running statistics by plain averages over batches, each at its setting.

    An average over batches at fixed weights is less noisy than the running mean of training. A norm
    whose bits never occur keeps its statistics. The backbone is left in evaluation mode.

    Each of the ``settings`` has mixes, which share a batch, uint8 ``[batch, c, h, w]``, in equal
    parts.
    """
    norms = [module for module in backbone.modules() if isinstance(module, BatchNormPerBits)]
    for norm in norms:
        norm.average_statistics(on=True)
    backbone.train()
    for mixes in settings:
        images = next(batches)
        sizes = [len(part) for part in torch.tensor_split(images, len(mixes))]
        *_, hidden = run_parts(backbone, backbone.stem(images), mixes, sizes)
        backbone.head(hidden)
    for norm in norms:
        norm.average_statistics(on=False)
    backbone.eval()


@torch.no_grad()
def measure_features(
    backbone: Backbone, batches: Iterable[ImageSet], generator: torch.Generator
) -> None:
    """Fit the probes and set ``feature_mean`` and ``feature_std``, each batch at a random mix.

    Batches have up to ``CALIBRATION_BATCH`` images; it takes as many as fit into memory.
    """
    per_batch = 4 * CALIBRATION_BATCH * sum(backbone.probe_sizes)
    n_batches = min(_FEATURE_BATCHES, max(1, _FEATURE_BYTES // per_batch))
    n_layers = len(backbone.blocks)
    parts: list[list[Tensor]] = [[] for _ in range(n_layers)]
    labels = []
    frozen = backbone.to_inference()
    for batch in islice(batches, n_batches):
        labels.append(batch.labels)
        mix = sample_low_mix(backbone.options, n_layers, generator)
        # The output of the last layer has no probe.
        inputs = activations(frozen, frozen.stem(batch.images), mix)
        for pooled, hidden in zip(parts, inputs, strict=False):
            pooled.append(backbone.parts(hidden))
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
    backbone: Backbone, after: Sequence[int], batches: Iterable[Tensor], generator: torch.Generator
) -> None:
    """Replace the exits of a trained backbone; nothing else changes.

    The exits come ``after`` these numbers of gated layers. Each head learns the network's
    probabilities at the largest bit width, without labels, from activations of batches, uint8
    ``[batch, c, h, w]``, each under a random mix.

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
        full = frozen.options[frozen.options.full]
        answers.append(frozen.head(run_layers(frozen, stem, full)).softmax(dim=1))
        mix = sample_low_mix(frozen.options, n_layers, generator)
        for layer, hidden in enumerate(activations(frozen, stem, mix)):
            if layer in heads:
                pooled = backbone.parts(hidden, grid=EXIT_GRID).flatten(1)
                parts[after.index(layer)].append(pooled)
            if layer == after[-1]:
                break
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
