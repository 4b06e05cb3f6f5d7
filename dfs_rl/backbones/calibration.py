"""Statistics that are measured rather than learned: quantizer steps, norms per option, features for gates."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from dfs_rl.backbones.probe import describe, fit_probe, pool_grid
from dfs_rl.backbones.resnet import ResNet
from dfs_rl.backbones.settings import Setting, sample_low
from dfs_rl.cost import SKIP
from dfs_rl.data import ImageSet
from dfs_rl.quant.layers import NORM_MOMENTUM, FractionalConv2d, FractionalLinear

_STILL = 1e-12  # variance below which a feature counts as constant


@torch.no_grad()
def calibrate_steps(backbone: ResNet, images: Tensor, *, parts: Iterable[nn.Module]) -> None:
    """Set the quantizer steps of ``parts`` from one pass of the dearest option over ``images``."""
    layers = [
        module
        for part in parts
        for module in part.modules()
        if isinstance(module, FractionalConv2d | FractionalLinear)
    ]
    was_training = backbone.training
    backbone.eval()
    for layer in layers:
        layer.calibrate_steps(on=True)
    backbone(images, backbone.options[backbone.options.full])
    for layer in layers:
        layer.calibrate_steps(on=False)
    backbone.train(was_training)


@torch.no_grad()
def copy_full_norms(backbone: ResNet) -> None:
    """Start every option's norm from the dearest option's: its statistics are nearer than zero and one."""
    for block in backbone.layers:
        for conv in (block.conv1, block.conv2):
            for tensor in (conv.norm_weight, conv.norm_bias, conv.running_mean, conv.running_var):
                tensor.copy_(tensor[-1:].expand_as(tensor))


def _norms_in_use(backbone: ResNet, setting: Setting) -> Iterator[tuple[FractionalConv2d, int]]:
    """Every convolution that runs under ``setting``, with its bits."""
    fixed = backbone.config.stem_bits
    yield backbone.stem_conv, fixed
    always = [(block, fixed) for block in backbone.stem_blocks]
    gated = [pair for pair in zip(backbone.blocks, setting, strict=True) if pair[1] != SKIP]
    for block, bits in (*always, *gated):
        for conv in block.modules():
            if isinstance(conv, FractionalConv2d):
                yield conv, bits


@torch.no_grad()
def calibrate_norms(
    backbone: ResNet, batches: Iterator[Tensor], settings: Iterable[Setting]
) -> None:
    """Replace all running statistics by plain averages over batches, one batch of images for each setting.

    An average over many batches of frozen weights is less noisy than the running mean that training leaves behind.

    Args:
        backbone: Changed in place; left in evaluation mode.
        batches: Images, uint8 ``[batch, c, h, w]``; one is taken for each setting.
        settings: Which bits to run; a norm whose bits never occur keeps its statistics.
    """
    seen: Counter[tuple[int, int]] = Counter()
    backbone.train()
    for setting in settings:
        for conv, bits in _norms_in_use(backbone, setting):
            seen[id(conv), bits] += 1
            # The k-th batch enters with weight 1 / k: the running mean becomes the mean.
            conv.momentum = 1.0 / seen[id(conv), bits]
        backbone(next(batches), setting)
    for module in backbone.modules():
        if isinstance(module, FractionalConv2d):
            module.momentum = NORM_MOMENTUM
    backbone.eval()


@torch.no_grad()
def measure_features(
    backbone: ResNet, batches: Iterable[ImageSet], generator: torch.Generator
) -> None:
    """Fit the probes and set ``feature_mean`` and ``feature_std``, under settings such as a gate may choose.

    Args:
        backbone: Changed in place.
        batches: Images of the train split with their labels; each batch runs under a setting of its own.
        generator: Draws the settings.
    """
    n_layers = len(backbone.blocks)
    parts: list[list[Tensor]] = [[] for _ in range(n_layers)]
    labels = []
    frozen = backbone.prepare()
    for batch in batches:
        labels.append(batch.labels)
        hidden = frozen.stem(batch.images)
        setting = sample_low(backbone.options, n_layers, generator)
        for layer, bits in enumerate(setting):
            parts[layer].append(pool_grid(hidden, grid=backbone.probe_grid))
            hidden = frozen.layers[layer](hidden, bits)
    backbone.feature_mean.zero_()
    backbone.feature_std.fill_(1.0)
    for layer, probe in enumerate(backbone.probes):
        seen = torch.cat(parts[layer])  # [images, channels, parts]
        parts[layer].clear()
        fit_probe(cast("FractionalLinear", probe), seen.flatten(1), torch.cat(labels))
        features = describe(seen, probe(seen.flatten(1))).double()
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        # A feature that never moves says nothing: a deviation of one leaves it at zero.
        deviation = torch.where(deviation.square() > _STILL, deviation, torch.ones_like(mean))
        backbone.feature_mean[layer, : len(mean)] = mean
        backbone.feature_std[layer, : len(mean)] = deviation
