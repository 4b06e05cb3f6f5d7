"""MobileNetV2 of adaptive depth: counts, norms of both modes, and both forms against torch's operators."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveMobileNetConfig,
    BackboneInfo,
    load_backbone,
    save_backbone,
)
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.gating import execution
from dfs_rl.training.calibration import calibrate_steps

GREY = ChannelStatistics((0.4,), (0.3,))


def make(**changes: object) -> AdaptiveMobileNet:
    settings: dict[str, object] = {
        "width": 8,
        "blocks": (2, 2, 4, 2, 2),
        "in_channels": 1,
        "n_classes": 3,
        "image_size": (16, 16),
        "bits": (0, 8, 32),
        **changes,
    }
    torch.manual_seed(0)
    net = AdaptiveMobileNet(AdaptiveMobileNetConfig(**settings), GREY)  # type: ignore[arg-type]
    net.train()
    calibrate_steps(net, pictures(), parts=[net])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        for bits in net.options:
            for _ in range(10):
                net(pictures(), bits)
    return net.eval()


def pictures(n: int = 8) -> Tensor:
    return torch.randint(
        0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def run(net, images: Tensor, setting: tuple[int, ...]) -> Tensor:
    hidden = net.stem(images)
    for layer, bits in zip(net.layers, setting, strict=True):
        hidden = layer(hidden, bits)
    return net.head(hidden)


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
        norm = (conv.running_mean, conv.running_var, conv.norm_weight, conv.norm_bias)
        return functional.batch_norm(x, *(tensor[row] for tensor in norm))

    def block(b: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        y = x
        for conv in b.convolutions[:-1]:
            y = functional.relu6(layer(conv, y, row))
        y = layer(b.convolutions[-1], y, row)
        return x + y if y.shape == x.shape else y

    for setting in [(0,) * 5, (32,) * 5, (32, 0, 32, 0, 0)]:
        x = functional.relu6(layer(net.stem_conv, (images / 255.0 - 0.4) / 0.3, 0))
        x = block(net.before, x, 0)
        for stage, bits in zip(net.blocks, setting, strict=True):
            for b in stage.mandatory:
                x = block(b, x, int(bits == 0))
            for b in stage.path if bits else []:
                x = block(b, x, 0)
        x = functional.relu6(layer(net.last_conv, block(net.after, x, 0), 0)).mean(dim=(2, 3))
        expected = functional.linear(x, net.classifier.weight, net.classifier.bias)
        torch.testing.assert_close(net(images, setting), expected, rtol=1e-3, atol=1e-4)
        frozen = run(net.prepare(), images, setting)
        torch.testing.assert_close(frozen, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"granularity": "block"}, {"per_channel": True}])
@torch.no_grad()
def test_the_frozen_form_equals_the_training_form(changes):
    net = make(**changes)
    frozen = net.prepare()
    assert len(net.layers) == (6 if "granularity" in changes else 5)
    for bits in itertools.product((0, 8, 32), repeat=2):
        setting = (bits * 3)[: len(net.layers)]
        ours, theirs = run(frozen, pictures(), setting), net(pictures(), setting)
        # The order of multiplications differs, so a value may now and then round to the neighbouring code.
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.15)


@torch.no_grad()
def test_a_mixed_batch_walks_as_each_of_its_images_alone():
    frozen = make().prepare()
    options = torch.randint(3, (8, 5), generator=torch.Generator().manual_seed(3))
    state = execution.start(frozen, pictures())
    for layer in range(5):
        state = execution.step(frozen, state, options[:, layer], reuse=True)
    alone = [
        run(frozen, image[None], tuple(frozen.options[o] for o in row))
        for image, row in zip(pictures(), options.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        execution.finish(frozen, state), torch.cat(alone), rtol=1e-3, atol=1e-4
    )


def test_what_is_saved_comes_back(tmp_path):
    net = make()
    save_backbone(net, BackboneInfo(dataset="d", fingerprint="0", class_names=("a",)), tmp_path)
    again = load_backbone(tmp_path)
    assert again.config == net.config
    assert torch.equal(again(pictures(), 8), net(pictures(), 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": (8, 32)}, r"bits is \[8, 32\], but .*; add 0"),
        ({"blocks": (2, 2)}, "2 stages; MobileNetV2 has 5"),
        ({"blocks": (2, 2, 1, 2, 2)}, "a stage needs at least 2"),
        ({"stem": "imagenet", "image_size": (24, 32)}, "sides of at least 32 are needed"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveMobileNetConfig(**changes)
