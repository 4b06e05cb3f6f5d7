"""ResNets and MobileNetV2 of adaptive depth: structure, norms, counts and both forms."""

import functools
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveResNet,
    AdaptiveResNetConfig,
    ResNet,
    ResNetConfig,
)
from dfs_rl.backbones.adaptive import AdaptiveLayer, mandatory_count
from dfs_rl.backbones.registry import network_of
from dfs_rl.costs import FixedCost
from dfs_rl.data import ChannelStatistics
from tests.helpers.networks import network, pictures_for, run

RGB = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
make = functools.partial(network, AdaptiveResNet)
pictures = functools.partial(pictures_for, AdaptiveResNet)
mobilenet = functools.partial(network, AdaptiveMobileNet)
mobilenet_pictures = functools.partial(pictures_for, AdaptiveMobileNet)
SHAPES: list[dict[str, object]] = [
    {"blocks": (2, 3)},
    {"blocks": (2, 5), "granularity": "block", "bits": (0, 4)},
    {"blocks": (2, 3), "block": "bottleneck"},
    {"blocks": (3, 2), "block": "bottleneck", "stem": "imagenet", "granularity": "block"},
]


def test_the_first_half_of_a_stage_is_mandatory():
    # Kang et al., section 3: the sub-paths are the latter half of a stage's blocks, never empty.
    assert [mandatory_count(n) for n in range(1, 7)] == [0, 1, 2, 2, 3, 3]
    shape = {"blocks": (2, 3, 4, 5), "width": 4, "image_size": (8, 8)}
    net, single = (
        AdaptiveResNet(AdaptiveResNetConfig(granularity=granularity, **shape), RGB)
        for granularity in ("path", "block")
    )
    assert [(len(s.mandatory), len(s.path)) for s in net.blocks] == [(1, 1), (2, 1), (2, 2), (3, 2)]
    assert len(single.layers) == 1 + 1 + 2 + 2
    begins = [i for i, layer in enumerate(single.layers) if isinstance(layer, AdaptiveLayer)]
    assert begins == [0, 1, 2, 4]


@pytest.mark.parametrize("depth", [14, 20])
def test_nothing_skipped_is_the_plain_resnet(depth):
    shape = {"width": 3, "image_size": (8, 8), "bits": (0, 32), "stem_bits": 32}
    torch.manual_seed(1)
    plain = ResNet(ResNetConfig(depth=depth, **shape), RGB)  # type: ignore[arg-type]
    for name, tensor in plain.state_dict().items():
        if "running" in name or "norm" in name:
            tensor.uniform_(0.5, 1.5)
    n_blocks = (depth - 2) // 6
    adaptive = network_of(f"cifar_resnet{depth}", "adn").make(RGB, **shape)
    weights = plain.state_dict()
    n_mandatory = mandatory_count(n_blocks)
    for name, tensor in adaptive.state_dict().items():
        theirs = name
        if name.startswith("blocks."):
            _, stage, part, n, rest = name.split(".", 4)
            block = int(stage) * n_blocks + int(n) + (n_mandatory if part == "path" else 0)
            theirs = f"blocks.{block}.{rest}"
        if "feature" not in name and "probes" not in name:
            tensor[: len(weights[theirs])] = weights[theirs]
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(adaptive.eval()(images), plain.eval()(images))
    assert adaptive.config.depth == depth


@pytest.mark.parametrize("changes", SHAPES)
def test_second_norms_are_those_of_skipped_stages(changes):
    for stage, norm_set in itertools.product(range(2), range(2)):
        net = make(**changes)
        firsts = [i for i, layer in enumerate(net.layers) if isinstance(layer, AdaptiveLayer)]
        poisoned = 0
        for name, tensor in net.blocks[firsts[stage]].mandatory.state_dict().items():
            if name.endswith("norm_bias") and len(tensor) == 2:
                tensor[norm_set] = torch.nan
                poisoned += 1
        assert poisoned >= 2
        frozen = net.to_inference()
        for mix in itertools.product(net.options, repeat=len(net.layers)):
            skipped = mix[firsts[stage]] == 0
            for form in (net, frozen):
                broken = bool(run(form, pictures(1), mix).isnan().any())
                assert broken == (skipped == bool(norm_set)), mix


def test_projections_and_stem_have_one_set_of_norms():
    net = make(blocks=(2, 2), block="bottleneck", stem_bits=32)
    rows = {
        name: len(tensor) for name, tensor in net.named_parameters() if name.endswith("norm_weight")
    }
    assert {n for n, count in rows.items() if "projection" in n or "stem" in n} == {
        n for n, count in rows.items() if count == 1
    }
    doubled = {n for n, count in rows.items() if ".mandatory." in n and "projection" not in n}
    assert all(rows[name] == 2 for name in doubled)
    assert len(doubled) == 2 * 3


def test_gating_blocks_equals_gating_their_path():
    whole, single = make(blocks=(4, 5)), make(blocks=(4, 5), granularity="block")
    assert single.costs.total_macs == whole.costs.total_macs
    assert sum(p.macs for p in single.costs.fixed) == sum(p.macs for p in whole.costs.fixed)
    for stage, source in enumerate(whole.blocks):
        first, second = single.blocks[2 * stage], single.blocks[2 * stage + 1]
        first.mandatory.load_state_dict(source.mandatory.state_dict())
        first.path[0].load_state_dict(source.path[0].state_dict())
        second.load_state_dict(source.path[1].state_dict())
    for part in ("stem_conv", "classifier"):
        getattr(single, part).load_state_dict(getattr(whole, part).state_dict())
    for a, b in itertools.product((0, 4, 32), repeat=2):
        assert torch.equal(run(single, pictures(), (a, a, b, b)), run(whole, pictures(), (a, b)))
    # A later block may run alone, on what the mandatory ones made for a skipped path.
    with torch.no_grad():
        hidden = single.layers[0](single.stem(pictures()), 0)
        assert torch.equal(single.layers[1](hidden, 0), hidden)
        assert not torch.equal(single.layers[1](hidden, 32), hidden)


def layer(conv: torch.nn.Module, x: Tensor, row: int) -> Tensor:
    """Convolve and normalise by torch's operators, with a row of the norms."""
    geometry = {"stride": conv.geometry.stride, "padding": conv.weight.shape[-1] // 2}
    x = functional.conv2d(x, conv.weight, groups=conv.geometry.groups, **geometry)
    norm = conv.norm
    tensors = (norm.running_mean, norm.running_var, norm.norm_weight, norm.norm_bias)
    return functional.batch_norm(x, *(tensor[row] for tensor in tensors))


def stages(net, x: Tensor, mix: tuple[int, ...], block) -> Tensor:
    """Run all stages by torch's operators."""
    for stage, bits in zip(net.blocks, mix, strict=True):
        for b in stage.mandatory:
            x = block(b, x, int(bits == 0))
        for b in stage.path if bits else []:
            x = block(b, x, 0)
    return x


def check(net, images: Tensor, mix: tuple[int, ...], x: Tensor) -> None:
    """Compare both forms with the last activation of torch's operators."""
    expected = functional.linear(x.mean(dim=(2, 3)), net.classifier.weight, net.classifier.bias)
    for form in (net, net.to_inference()):
        torch.testing.assert_close(run(form, images, mix), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_bottlenecks_equal_torchs_operators():
    net = make(blocks=(2, 3), block="bottleneck", bits=(0, 32), stem_bits=32)

    def block(b: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        y = layer(b.conv2, layer(b.conv1, x, row).relu(), row).relu()
        shortcut = x if b.projection is None else layer(b.projection, x, 0)
        return (layer(b.conv3, y, row) + shortcut).relu()

    for mix in itertools.product((0, 32), repeat=2):
        hidden = layer(net.stem_conv, (pictures() / 255.0 - 0.4) / 0.3, 0).relu()
        check(net, pictures(), mix, stages(net, hidden, mix, block))


@pytest.mark.parametrize("changes", [{}, {"stem": "imagenet", "image_size": (32, 32)}])
@torch.no_grad()
def test_mobilenet_equals_torchs_operators(changes):
    net = mobilenet(bits=(0, 32), stem_bits=32, **changes)
    images = mobilenet_pictures() if not changes else mobilenet_pictures().repeat(1, 1, 2, 2)

    def block(b: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        y = x
        for conv in b.convolutions[:-1]:
            y = functional.relu6(layer(conv, y, row))
        y = layer(b.convolutions[-1], y, row)
        return x + y if y.shape == x.shape else y

    for mix in [(0,) * 5, (32,) * 5, (32, 0, 32, 0, 0)]:
        x = functional.relu6(layer(net.stem_conv, (images / 255.0 - 0.4) / 0.3, 0))
        x = stages(net, block(net.before, x, 0), mix, block)
        check(net, images, mix, functional.relu6(layer(net.last_conv, block(net.after, x, 0), 0)))


def test_macs_of_a_cifar_network_equal_the_closed_form():
    net = AdaptiveResNet(AdaptiveResNetConfig(blocks=(3, 4, 5)), RGB)
    same = 2 * 16 * 16 * 9 * 32 * 32  # of a block, in all stages alike
    down = 16 * 32 * 9 * 16 * 16 + 32 * 32 * 9 * 16 * 16
    assert net.costs.layer_macs == (same, 2 * same, 2 * same)
    mandatory = (2 * same, down + same, down + 2 * same)
    assert net.costs.fixed == (
        FixedCost(name="stem", macs=3 * 16 * 9 * 32 * 32, bits=8),
        *(FixedCost(name="mandatory", macs=m, bits=8, layer=n) for n, m in enumerate(mandatory)),
        FixedCost(name="head", macs=640, bits=8, layer=3),
    )
