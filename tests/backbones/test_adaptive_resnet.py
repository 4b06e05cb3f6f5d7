"""ResNets of adaptive depth: structure, norms of both modes, counts and both forms."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveResNet,
    AdaptiveResNetConfig,
    BackboneInfo,
    ResNet,
    ResNetConfig,
    WalkableBackbone,
    load_backbone,
    save_backbone,
)
from dfs_rl.backbones.adaptive_layer import AdaptiveLayer, mandatory_count
from dfs_rl.backbones.registry import stages_of
from dfs_rl.costs import FixedCost
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.gating import execution
from dfs_rl.training.calibration import calibrate_steps

GREY = ChannelStatistics((0.4,), (0.3,))
RGB = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
SHAPES: list[dict[str, object]] = [
    {"blocks": (2, 3)},
    {"blocks": (2, 5), "granularity": "block"},
    {"blocks": (2, 3), "block": "bottleneck"},
    {"blocks": (3, 2), "block": "bottleneck", "stem": "imagenet", "granularity": "block"},
]


def make(**changes: object) -> AdaptiveResNet:
    settings: dict[str, object] = {
        "blocks": (3, 2),
        "width": 4,
        "in_channels": 1,
        "n_classes": 3,
        "image_size": (8, 8),
        "bits": (0, 4, 32),
        **changes,
    }
    torch.manual_seed(0)
    net = AdaptiveResNet(AdaptiveResNetConfig(**settings), GREY)  # type: ignore[arg-type]
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


def pictures(n: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def run(net: WalkableBackbone, images: Tensor, setting: tuple[int, ...]) -> Tensor:
    hidden = net.stem(images)
    for layer, bits in zip(net.layers, setting, strict=True):
        hidden = layer(hidden, bits)
    return net.head(hidden)


def settings_of(net: AdaptiveResNet) -> Iterator[tuple[int, ...]]:
    return itertools.product(net.options, repeat=len(net.layers))


def test_the_first_half_of_a_stage_is_mandatory():
    # Kang et al., section 3: the sub-paths are the latter half of a stage's blocks, which is never empty.
    assert [mandatory_count(n) for n in range(1, 7)] == [0, 1, 2, 2, 3, 3]
    net = make(blocks=(2, 3, 4, 5))
    assert [(len(s.mandatory), len(s.path)) for s in net.blocks] == [(1, 1), (2, 1), (2, 2), (3, 2)]
    single = make(blocks=(2, 3, 4, 5), granularity="block")
    assert len(single.layers) == 1 + 1 + 2 + 2
    assert [isinstance(layer, AdaptiveLayer) for layer in single.layers] == [
        True, True, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [14, 20, 32])
def test_nothing_skipped_is_the_plain_resnet(depth):
    shape = {"width": 3, "image_size": (8, 8), "bits": (0, 32), "stem_bits": 32}
    torch.manual_seed(1)
    plain = ResNet(ResNetConfig(depth=depth, **shape), RGB)  # type: ignore[arg-type]
    for name, tensor in plain.state_dict().items():
        if "running" in name or "norm" in name:
            tensor.uniform_(0.5, 1.5)
    n_blocks = (depth - 2) // 6
    adaptive = AdaptiveResNet(
        AdaptiveResNetConfig(blocks=stages_of(f"resnet{depth}").blocks, **shape),  # type: ignore[arg-type]
        RGB,
    )
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
@pytest.mark.parametrize("frozen", [False, True])
def test_the_second_norms_are_used_exactly_where_their_stage_is_skipped(changes, frozen):
    for stage, norm_set in itertools.product(range(2), range(2)):
        net = make(**changes)
        firsts = [i for i, layer in enumerate(net.layers) if isinstance(layer, AdaptiveLayer)]
        poisoned = 0
        for name, tensor in net.blocks[firsts[stage]].mandatory.state_dict().items():
            if name.endswith("norm_bias") and len(tensor) == 2:
                tensor[norm_set] = torch.nan
                poisoned += 1
        assert poisoned >= 2
        form = net.prepare() if frozen else net
        for setting in settings_of(net):
            skipped = setting[firsts[stage]] == 0
            broken = bool(run(form, pictures(2), setting).isnan().any())
            assert broken == (skipped == bool(norm_set)), setting


def test_down_sampling_stem_and_head_have_one_set_of_norms():
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


def test_gating_blocks_is_gating_the_path_where_its_blocks_agree():
    whole, single = make(blocks=(4, 5)), make(blocks=(4, 5), granularity="block")
    ours = whole.state_dict()
    n_gated, layer = {0: 2, 1: 2}, 0
    for stage, count in n_gated.items():
        for n in range(count):
            target = single.blocks[layer]
            block = target.path[0] if n == 0 else target
            block.load_state_dict(whole.blocks[stage].path[n].state_dict())
            if n == 0:
                target.mandatory.load_state_dict(whole.blocks[stage].mandatory.state_dict())
            layer += 1
    for part in ("stem_conv", "classifier"):
        getattr(single, part).load_state_dict(getattr(whole, part).state_dict())
    assert ours.keys() != single.state_dict().keys()
    for a, b in itertools.product((0, 4, 32), repeat=2):
        assert torch.equal(run(single, pictures(), (a, a, b, b)), run(whole, pictures(), (a, b)))
    with (
        torch.no_grad()
    ):  # a later block may run alone, on what the mandatory ones made for a skipped path
        hidden = single.layers[0](single.stem(pictures()), 0)
        assert torch.equal(single.layers[1](hidden, 0), hidden)
        assert not torch.equal(single.layers[1](hidden, 32), hidden)


@pytest.mark.parametrize("changes", [*SHAPES, {"per_channel": True}, {"stem_bits": 32}])
@torch.no_grad()
def test_the_frozen_form_equals_the_training_form(changes):
    net = make(**changes)
    frozen = net.prepare()
    for setting in settings_of(net):
        ours, theirs = run(frozen, pictures(), setting), net(pictures(), setting)
        # The order of multiplications differs, so a value may now and then round to the neighbouring code.
        near = torch.isclose(ours, theirs, rtol=1e-3, atol=1e-3).float().mean()
        assert near > 0.8, setting
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.3)


def test_bottlenecks_equal_torchs_operators():
    net = make(blocks=(2,), block="bottleneck", bits=(0, 32), stem_bits=32)

    def layer(conv: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        x = functional.conv2d(
            x, conv.weight, stride=conv.geometry.stride, padding=conv.weight.shape[-1] // 2
        )
        return functional.batch_norm(
            x,
            conv.running_mean[row],
            conv.running_var[row],
            conv.norm_weight[row],
            conv.norm_bias[row],
        )

    def block(b: torch.nn.Module, x: Tensor, row: int) -> Tensor:
        y = layer(b.conv1, x, row).relu()
        y = layer(b.conv3, layer(b.conv2, y, row).relu(), row)
        return (y + (x if b.projection is None else layer(b.projection, x, 0))).relu()

    stage = net.blocks[0]
    with torch.no_grad():
        hidden = layer(net.stem_conv, (pictures() / 255.0 - 0.4) / 0.3, 0).relu()
        cut = block(stage.mandatory[0], hidden, 1)
        whole = block(stage.path[0], block(stage.mandatory[0], hidden, 0), 0)
        for bits, expected in ((0, cut), (32, whole)):
            logits = functional.linear(
                expected.mean(dim=(2, 3)), net.classifier.weight, net.classifier.bias
            )
            torch.testing.assert_close(net(pictures(), bits), logits, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("granularity", ["path", "block"])
def test_resnet50_has_the_published_size_and_costs(granularity):
    with torch.device("meta"):
        net = AdaptiveResNet(
            AdaptiveResNetConfig(
                blocks=stages_of("bottleneck50").blocks,
                block="bottleneck",
                stem="imagenet",
                granularity=granularity,
                width=64,
                n_classes=1000,
                image_size=(224, 224),
                bits=(0, 32),
                stem_bits=32,
            ),
            RGB,
        )
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    second = sum(p[1:].numel() for n, p in trained if n.split(".")[-1].startswith("norm"))
    # torchvision: 25,557,032 parameters. The second norms are those of 2 + 2 + 3 + 2 mandatory blocks.
    assert sum(p.numel() for _, p in trained) - second == 25_557_032
    assert second == 2 * sum(n * 6 * width for n, width in ((2, 64), (2, 128), (3, 256), (2, 512)))
    block = (
        56 * 56 * (256 * 64 + 64 * 64 * 9 + 64 * 256)
    )  # behind a stage's first, in all stages alike
    assert sum(net.costs.layer_macs) == (1 + 2 + 3 + 1) * block
    always = sum(part.macs for part in net.costs.fixed)
    # Kang et al., table 1: 4.11 and 2.58 GFLOPs, which count a little more than convolutions and the classifier.
    assert (always + net.costs.total_macs) / 1e9 == pytest.approx(4.11, abs=0.03)
    assert always / 1e9 == pytest.approx(2.58, abs=0.03)
    assert net.config.depth == 50


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("reuse", [False, True])
@torch.no_grad()
def test_a_mixed_batch_walks_as_each_of_its_images_alone(changes, reuse):
    frozen = make(**changes).prepare()
    images, n_layers = pictures(12), len(frozen.layers)
    options = torch.randint(3, (12, n_layers), generator=torch.Generator().manual_seed(3))
    state = execution.start(frozen, images)
    for layer in range(n_layers):
        state = execution.step(frozen, state, options[:, layer], reuse=reuse)
    logits = execution.finish(frozen, state)
    alone = [
        run(frozen, image[None], tuple(frozen.options[o] for o in row))
        for image, row in zip(images, options.tolist(), strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_what_is_saved_comes_back(tmp_path):
    net = make(blocks=(2, 3), granularity="block")
    save_backbone(net, BackboneInfo(dataset="d", fingerprint="0", class_names=("a",)), tmp_path)
    again = load_backbone(tmp_path)
    assert isinstance(again, AdaptiveResNet)
    assert again.config == net.config
    assert again.costs == net.costs
    for setting in settings_of(net):
        assert torch.equal(again(pictures(), setting), net(pictures(), setting))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": (4, 32)}, r"bits is \[4, 32\], but .*; add 0"),
        ({"bits": (0,)}, r"bits is \[0\]"),
        ({"blocks": ()}, "0 stages; allowed are 1 to 8"),
        ({"blocks": (3, 1)}, "a stage needs at least 2"),
        ({"blocks": (400, 400)}, "makes 1602 layers; at most 1202"),
        ({"stem": "imagenet", "image_size": (8, 8)}, "sides of at least 16 are needed"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveResNetConfig(**changes)


@pytest.mark.parametrize("name", ["resnet8", "resnet21", "bottleneck51", "resnet"])
def test_names_of_no_adaptive_network_are_refused(name):
    with pytest.raises(ConfigError, match=f"backbone is '{name}'; with the recipe adn allowed are"):
        stages_of(name)
