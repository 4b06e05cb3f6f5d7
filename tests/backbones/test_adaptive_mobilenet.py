"""MobileNetV2 of adaptive depth: counts, norms, both forms against torch's operators."""

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveMobileNetConfig,
)
from dfs_rl.data import ChannelStatistics
from tests.helpers.networks import network, pictures_for, run

make = functools.partial(network, AdaptiveMobileNet)
pictures = functools.partial(pictures_for, AdaptiveMobileNet)


def test_it_has_the_published_size_and_costs():
    with torch.device("meta"):
        config = AdaptiveMobileNetConfig(
            stem="imagenet", n_classes=1000, image_size=(224, 224), bits=(0, 32), stem_bits=32
        )
        net = AdaptiveMobileNet(config, ChannelStatistics((0.4,) * 3, (0.3,) * 3))
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    second = sum(p[1:].numel() for n, p in trained if n.split(".")[-1].startswith("norm"))
    # torchvision's mobilenet_v2 has 3,504,872 parameters, and does 300.8 M multiply-accumulates.
    assert sum(p.numel() for _, p in trained) - second == 3_504_872
    always = sum(part.macs for part in net.costs.fixed)
    assert (always + net.costs.total_macs) / 1e6 == pytest.approx(300.8, abs=0.1)

    def block(channels: int, side: int) -> int:
        return side * side * (2 * channels * 6 * channels + 9 * 6 * channels)

    paths = [(24, 56, 1), (32, 28, 1), (64, 14, 2), (96, 14, 1), (160, 7, 1)]
    assert net.costs.layer_macs == tuple(n * block(c, side) for c, side, n in paths)


@pytest.mark.parametrize("changes", [{}, {"stem": "imagenet", "image_size": (32, 32)}])
@torch.no_grad()
def test_at_32_bit_it_is_torchs_operators(changes):
    net = make(bits=(0, 32), stem_bits=32, **changes)
    images = pictures() if not changes else pictures().repeat(1, 1, 2, 2)

    def layer(conv: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        side = conv.weight.shape[-1]
        x = functional.conv2d(
            x,
            conv.weight,
            stride=conv.geometry.stride,
            padding=side // 2,
            groups=x.shape[1] // conv.weight.shape[1],
        )
        norm = (
            conv.norm.running_mean,
            conv.norm.running_var,
            conv.norm.norm_weight,
            conv.norm.norm_bias,
        )
        return functional.batch_norm(x, *(tensor[row] for tensor in norm))

    def block(b: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        y = x
        for conv in b.convolutions[:-1]:
            y = functional.relu6(layer(conv, y, row))
        y = layer(b.convolutions[-1], y, row)
        return x + y if y.shape == x.shape else y

    for mix in [(0,) * 5, (32,) * 5, (32, 0, 32, 0, 0)]:
        x = functional.relu6(layer(net.stem_conv, (images / 255.0 - 0.4) / 0.3, 0))
        x = block(net.before, x, 0)
        for stage, bits in zip(net.blocks, mix, strict=True):
            for b in stage.mandatory:
                x = block(b, x, int(bits == 0))
            for b in stage.path if bits else []:
                x = block(b, x, 0)
        x = functional.relu6(layer(net.last_conv, block(net.after, x, 0), 0)).mean(dim=(2, 3))
        expected = functional.linear(x, net.classifier.weight, net.classifier.bias)
        torch.testing.assert_close(net(images, mix), expected, rtol=1e-3, atol=1e-4)
        frozen = run(net.to_inference(), images, mix)
        torch.testing.assert_close(frozen, expected, rtol=1e-3, atol=1e-4)
