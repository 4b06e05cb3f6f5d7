"""Statistics that are measured rather than learned: quantizer steps, norms per option, features for gates."""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from dfs_rl.backbones.resnet import ResNet
from dfs_rl.backbones.settings import Setting, random_mix
from dfs_rl.cost import SKIP
from dfs_rl.quant.layers import NORM_MOMENTUM, FractionalConv2d, FractionalLinear

_STILL = 1e-12  # variance below which a channel counts as constant


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
    backbone: ResNet, batches: Iterable[Tensor], generator: torch.Generator
) -> None:
    """Set ``feature_mean`` and ``feature_std`` from activations under random mixes, as a gate will meet them.

    Args:
        backbone: Changed in place.
        batches: Images, uint8 ``[batch, c, h, w]``; each batch runs under a mix of its own.
        generator: Draws the mixes.
    """
    n_layers = len(backbone.blocks)
    count = 0
    total = torch.zeros_like(backbone.feature_mean, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for images in batches:
        hidden = backbone.stem(images)
        setting = random_mix(backbone.options, n_layers, generator)
        for layer, bits in enumerate(setting):
            feature = backbone.feature(hidden).double()  # [batch, channels]
            channels = feature.shape[1]
            total[layer, :channels] += feature.sum(dim=0)
            squares[layer, :channels] += feature.square().sum(dim=0)
            hidden = backbone.layers[layer](hidden, bits)
        count += len(images)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    # A channel that never moves says nothing: a deviation of one leaves it at zero.
    deviation = torch.where(variance > _STILL, variance.sqrt(), torch.ones_like(variance))
    backbone.feature_mean.copy_(mean)
    backbone.feature_std.copy_(deviation)
