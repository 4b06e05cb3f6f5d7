"""What holds for every kind of network: both forms agree, batches, storage, refused shapes."""

import copy
import functools
import itertools

import pytest
import torch
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveMobileNetConfig,
    AdaptiveResNet,
    AdaptiveResNetConfig,
    AdaptiveSwin,
    AdaptiveSwinConfig,
    AdaptiveVisionTransformer,
    AdaptiveVisionTransformerConfig,
    BackboneInfo,
    ResNet,
    ResNetConfig,
    VisionTransformer,
    VisionTransformerConfig,
    load_backbone,
    save_backbone,
)
from dfs_rl.backbones.registry import network_of
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.gating import execution
from tests.helpers.networks import network, pictures_for, run

RGB = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
CONV = {
    "resnet": (ResNet, {}),
    "resnet-always": (ResNet, {"first_block": "always"}),
    "resnet-per-channel": (ResNet, {"per_channel": True}),
    "resnet-float-stem": (ResNet, {"stem_bits": 32, "depth": 14}),
    "resnet-affine-skips": (ResNet, {"affine_skips": True, "depth": 14}),
    "adaptive": (AdaptiveResNet, {"blocks": (2, 3)}),
    "adaptive-blocks": (AdaptiveResNet, {"blocks": (2, 5), "granularity": "block"}),
    "bottleneck": (AdaptiveResNet, {"blocks": (2, 3), "block": "bottleneck"}),
    "imagenet": (AdaptiveResNet, {"blocks": (3, 2), "block": "bottleneck", "stem": "imagenet"}),
    "adaptive-float-stem": (AdaptiveResNet, {"per_channel": True, "stem_bits": 32}),
    "mobilenet": (AdaptiveMobileNet, {}),
    "mobilenet-blocks": (AdaptiveMobileNet, {"granularity": "block"}),
    "mobilenet-per-channel": (AdaptiveMobileNet, {"per_channel": True}),
}
TOKENS = {
    "vit": (VisionTransformer, {}),
    "vit-branches": (VisionTransformer, {"gate_branches": True, "per_channel": True}),
    "adaptive-vit": (AdaptiveVisionTransformer, {"bits": (0, 4, 32)}),
    "swin": (AdaptiveSwin, {}),
    "swin-blocks": (AdaptiveSwin, {"granularity": "block", "per_channel": True}),
}
ALL = CONV | TOKENS
STORED = [
    *("resnet-always", "resnet-affine-skips", "adaptive-blocks", "mobilenet"),
    *("vit-branches", "adaptive-vit", "swin-blocks"),
]
TWO_STAGES = {"blocks": (3, 2), "image_size": (8, 8)}


@functools.cache
def made(name):
    """The network of a name; not to be changed."""
    kind, changes = ALL[name]
    return network(kind, **changes)


def images_for(name, n=8):
    return pictures_for(ALL[name][0], n)


def settings_of(net):
    """Uniform settings, and some mixes."""
    n = len(net.layers)
    yield from ((bits,) * n for bits in net.options)
    for a, b in itertools.pairwise(net.options):
        yield from (((a, b) * n)[:n], ((b, a) * n)[:n])


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_inference_form_equals_training_form(name):
    net, images = made(name), images_for(name)
    frozen = net.to_inference()
    for mix in settings_of(net):
        ours, theirs = run(frozen, images, mix), net(images, mix)
        if name in TOKENS:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
            continue
        # The order of multiplications differs, so a value may round to the next code.
        near = torch.isclose(ours, theirs, rtol=1e-3, atol=1e-3).float().mean()
        assert near > (0.3 if "mobilenet" in name else 0.8), mix
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.3)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_mixed_batch_equals_its_images_alone(name):
    frozen = made(name).to_inference()
    images, n = images_for(name, 9), len(frozen.layers)
    n_options = len(frozen.options)
    options = torch.randint(n_options, (9, n), generator=torch.Generator().manual_seed(3))
    alone = torch.cat(
        [
            run(frozen, image[None], tuple(frozen.options[o] for o in row))
            for image, row in zip(images, options.tolist(), strict=True)
        ]
    )
    for reuse in (False, True):
        state = execution.run_stem(frozen, images)
        for layer in range(n):
            state = execution.run_layer(frozen, state, options[:, layer], reuse=reuse)
        logits = execution.run_head(frozen, state)
        torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["resnet", "resnet-affine-skips", "adaptive", "mobilenet", *TOKENS]
)
@torch.no_grad()
def test_bfloat16_form_is_near_the_other(name):
    net, images = made(name), images_for(name)
    mix = (32,) * (len(net.layers) - 1) + ((0,) if "skip" in name else (32,))
    halved = net.to_inference(torch.bfloat16)
    hidden = halved.layers[0](halved.stem(images), mix[-1])
    assert hidden.dtype == torch.bfloat16
    ours = run(halved, images, mix)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, net(images, mix), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_stored_network_comes_back(name, tmp_path):
    net, images = copy.deepcopy(made(name)), images_for(name)
    net.set_exits((1,))
    net.feature_mean.normal_()
    info = BackboneInfo(dataset="d", fingerprint="f", class_names=("a", "b", "c"))
    save_backbone(net, info, tmp_path)
    again = load_backbone(tmp_path)
    assert type(again) is type(net)
    assert again.config == net.config
    assert again.costs == net.costs
    tensors = again.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    for mix in (32, ((0, net.options[1]) * len(net.layers))[: len(net.layers)]):
        assert torch.equal(again(images, mix), net(images, mix))


@torch.no_grad()
def test_skipped_blocks_correct_each_channel():
    block = copy.deepcopy(made("resnet-affine-skips").blocks[2])  # 8 channels from 4, half the size
    block.skip_scale.copy_(torch.linspace(0.5, 2.0, 8)[:, None, None])
    block.skip_shift.copy_(torch.linspace(-0.5, 1.0, 8)[:, None, None])
    hidden = torch.rand(5, 4, 8, 8)
    shortcut = functional.pad(hidden[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4))
    for channel in range(8):
        line = shortcut[:, channel] * (0.5 + channel * 1.5 / 7) - 0.5 + channel * 1.5 / 7
        torch.testing.assert_close(block(hidden, 0)[:, channel], line.clamp(min=0.0))


def test_depths_are_those_of_the_first_layers():
    net = made("resnet-affine-skips")
    assert net.stages == (2, 2, 2)
    assert net.at_depths((1, 2, 0), 4) == (4, 0, 4, 4, 0, 0)
    assert net.at_depths((2, 1, 1), (2, 4, 8, 2, 4, 8)) == (2, 4, 8, 0, 4, 0)
    assert made("adaptive-blocks").stages == (1, 2)  # three of five blocks always run
    with pytest.raises(ConfigError, match=r"depths are \[1, 3, 1\]; the stages have \[2, 2, 2\]"):
        net.at_depths((1, 3, 1), 4)


@pytest.mark.parametrize("name", ["vit", "adaptive-vit", "swin"])
@torch.no_grad()
def test_gates_see_the_mean_over_tokens(name):
    net = made(name)
    hidden = net.stem(images_for(name))
    _, rows, columns, width = hidden.shape
    assert set(net.feature_sizes) == {3 + width}
    torch.testing.assert_close(net.feature(hidden, 0)[:, 3:], hidden.mean(dim=(1, 2)))
    corner = hidden[:, : rows // 2, columns // 2 :].mean(dim=(1, 2))
    torch.testing.assert_close(net.parts(hidden, grid=2)[:, :, 1], corner)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (ResNetConfig, {"depth": 18}, "depth is 18"),
        (ResNetConfig, {"depth": 2}, "depth is 2"),
        (ResNetConfig, {"width": 0}, "width is 0"),
        (ResNetConfig, {"in_channels": 5}, "in_channels is 5; it must be at most 4"),
        (ResNetConfig, {"n_classes": 1}, "n_classes is 1"),
        (ResNetConfig, {"image_size": (3, 8)}, r"image_size\[0\] is 3; it must be at least 4"),
        (ResNetConfig, {"stem_bits": 0}, "stem_bits is 0"),
        (ResNetConfig, {"bits": (4, 2)}, "bit options"),
        (ResNetConfig, {"bits": (0,)}, r"bits is \[0\]"),
        (AdaptiveResNetConfig, {"bits": (4, 32)}, r"bits is \[4, 32\], but .*; add 0"),
        (AdaptiveResNetConfig, {"blocks": ()}, "a stage needs at least 2"),
        (AdaptiveResNetConfig, {"blocks": (2,) * 9}, "9 stages; allowed are 1 to 8"),
        (AdaptiveResNetConfig, {"blocks": (3, 1)}, "a stage needs at least 2"),
        (AdaptiveResNetConfig, {"blocks": (400, 400)}, "makes 1602 layers; at most 1202"),
        (AdaptiveResNetConfig, {"stem": "imagenet", "image_size": (8, 8)}, "of at least 16 are"),
        (AdaptiveMobileNetConfig, {"blocks": (2, 2)}, "2 stages; MobileNetV2 has 5"),
        (AdaptiveMobileNetConfig, {"blocks": (2, 2, 1, 2, 2)}, "a stage needs at least 2"),
        (AdaptiveMobileNetConfig, {"stem": "imagenet", "image_size": (24, 32)}, "at least 32 are"),
        (VisionTransformerConfig, {"heads": 5}, "heads is 5; the width 192 must be a multiple"),
        (VisionTransformerConfig, {"heads": 0}, "heads is 0"),
        (VisionTransformerConfig, {"patch": 3, "image_size": (8, 8)}, r"are \[1, 2, 4, 8\]"),
        (VisionTransformerConfig, {"patch": 0}, "patch is 0; it must be at least 1"),
        (VisionTransformerConfig, {"depth": 0}, "depth is 0; it must be at least 1"),
        (VisionTransformerConfig, {"bits": (0,)}, "bits is"),
        (AdaptiveVisionTransformerConfig, {"blocks": (3, 1)}, "a stage needs at least 2"),
        (AdaptiveVisionTransformerConfig, {"blocks": (25, 25)}, "50 in all; at most 48"),
        (AdaptiveVisionTransformerConfig, {"bits": (2, 32)}, "add 0"),
        (AdaptiveSwinConfig, {"blocks": (3, 1)}, "a stage needs at least 2"),
        (AdaptiveSwinConfig, {"bits": (4, 32)}, "add 0"),
        (AdaptiveSwinConfig, {"blocks": ()}, "a stage needs at least 2"),
        (AdaptiveSwinConfig, TWO_STAGES | {"image_size": (9, 12)}, "which no patch cuts into maps"),
        (AdaptiveSwinConfig, TWO_STAGES | {"image_size": (23, 23)}, "multiples of 8 do"),
        (AdaptiveSwinConfig, TWO_STAGES | {"patch": 8}, r"8 x 8 pixels; allowed are \[1, 2, 4\]"),
        (AdaptiveSwinConfig, {"heads": 5}, "the width 96 must be a multiple"),
    ],
)
def test_impossible_shapes_are_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


VIT_SMALL = {"width": 384, "heads": 6, "patch": 16}
VIT_MACS = 12 * (196 * 12 * 384**2 + 2 * 196**2 * 384) + 196 * 3 * 16**2 * 384 + 1000 * 384


@pytest.mark.parametrize(
    ("name", "recipe", "changes", "parameters", "macs", "tolerance"),
    [
        # torchvision; Kang et al., table 1: 4.11 and 2.58 GMACs
        ("resnet50", "adn", {}, 25_557_032, 4.11e9, 0.03e9),
        ("mobilenetv2", "adn", {"stem": "imagenet"}, 3_504_872, 300.8e6, 0.1e6),  # torchvision
        # Table 7 of the paper. In torchvision 28,288,354 parameters; here keys have no bias.
        ("swin_tiny", "adn", {}, 28_288_354 - 4416, 4.5e9, 0.05e9),
        # DeiT's also has a class token, its position, and biases of keys (Touvron et al., 2021).
        ("vit12", "supernet", VIT_SMALL, 22_050_664 - 14 * 384, VIT_MACS, 0),
    ],
)
def test_published_sizes_and_costs(name, recipe, changes, parameters, macs, tolerance):
    shape = {"n_classes": 1000, "image_size": (224, 224), "bits": (0, 32), "stem_bits": 32}
    with torch.device("meta"):
        net = network_of(name, recipe).make(RGB, **shape, **changes)
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    # What always runs has two sets of norms, of which one is counted.
    second = sum(p[1:].numel() for n, p in trained if n.split(".")[-1].startswith("norm_"))
    assert sum(p.numel() for _, p in trained) - second == parameters
    always = sum(part.macs for part in net.costs.fixed)
    assert always + net.costs.total_macs == pytest.approx(macs, abs=tolerance)
    if name == "resnet50":
        assert always == pytest.approx(2.58e9, abs=0.03e9)
        assert net.config.depth == 50
    if name == "swin_tiny":
        assert net.config.patch_size == 4
