"""ResNets: shape, counts and both forms."""

import functools
import itertools

import pytest
import torch

from dfs_rl.backbones import GatedBackbone, ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError, DataError
from tests.helpers.networks import network, pictures_for, run

RGB = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
small = functools.partial(network, ResNet)
pictures = functools.partial(pictures_for, ResNet, 32)


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_depth_counts_weighted_layers(depth):
    net = ResNet(ResNetConfig(depth=depth, width=2, image_size=(8, 8)), RGB)
    weighted = [
        name for name, p in net.named_parameters() if name.endswith(".weight") and p.requires_grad
    ]
    assert len(weighted) == depth
    assert len(net.layers) == (depth - 2) // 2


def test_resnet20_has_the_published_size():
    net = ResNet(ResNetConfig(bits=(32,), stem_bits=32), RGB)
    # He et al., table 6: 0.27 M parameters; here 270,896 and no projection shortcuts.
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9
    convolutions += 32 * 64 * 9 + 5 * 64 * 64 * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == convolutions + norms + 64 * 10 + 10


def test_macs_equal_the_closed_form():
    net = ResNet(ResNetConfig(depth=20), RGB)
    # Two convolutions; halving the side and doubling the channels keeps it.
    same = 2 * 16 * 16 * 9 * 32 * 32
    down = 16 * 32 * 9 * 16 * 16 + 32 * 32 * 9 * 16 * 16
    assert net.costs.layer_macs == (same, same, same, down, same, same, down, same, same)
    stem, head = net.costs.fixed
    assert (stem.macs, head.macs) == (3 * 16 * 9 * 32 * 32, 640)
    # A stem in full precision would be 1.1 % of the gated layers, more than all of them at 3 bit.
    assert stem.macs / net.costs.total_macs == pytest.approx(0.011, abs=1e-4)


def test_a_first_block_that_always_runs_is_in_the_stem():
    gated, always = small(), small(first_block="always")
    assert len(always.layers) == len(gated.layers) - 1
    assert always.costs.layer_macs == gated.costs.layer_macs[1:]
    moved = always.costs.fixed[0].macs - gated.costs.fixed[0].macs
    assert moved == gated.costs.layer_macs[0]
    assert always.stem(pictures()).shape == (32, 4, 8, 8)


def test_frozen_form_is_a_copy_without_gradients():
    net = small()
    frozen = net.to_inference()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    for tensor in net.state_dict().values():
        tensor.add_(1.0)
    assert all(torch.equal(before[name], t) for name, t in frozen.state_dict().items())
    assert not run(frozen, pictures(), [4, 4, 4]).requires_grad
    assert isinstance(frozen, GatedBackbone)
    assert isinstance(net, GatedBackbone)


def test_a_skipped_block_leaves_only_its_shortcut():
    net = small()
    hidden = net.stem(pictures())
    assert torch.equal(net.layers[0](hidden, 0), hidden)
    down = net.layers[1](hidden, 0)
    assert torch.equal(down[:, :4], hidden[:, :, ::2, ::2])
    assert not down[:, 4:].any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_to_four_channels_and_any_size(channels):
    statistics = ChannelStatistics((0.5,) * channels, (0.2,) * channels)
    config = ResNetConfig(depth=8, width=4, in_channels=channels, n_classes=7, image_size=(9, 12))
    net = ResNet(config, statistics).eval()
    images = torch.zeros(2, channels, 9, 12, dtype=torch.uint8)
    assert net(images, 4).shape == (2, 7)
    assert net.image_shape == (channels, 9, 12)


def test_a_wrong_number_of_bits_is_refused():
    with pytest.raises(ConfigError, match="2 bit widths given for 3 gated layers"):
        small()(pictures(), [4, 4])


# 288 channels x parts x classes / 16 against 0.0002 x 40,108,032
@pytest.mark.parametrize(("classes", "grid"), [(10, 4), (100, 2), (1000, 1)])
def test_probes_look_as_closely_as_they_may_cost(classes, grid):
    net = ResNet(ResNetConfig(depth=20, n_classes=classes), RGB)
    assert net.probe_grid == grid
    assert net.feature_macs == 288 * grid**2 * classes / 16
    hidden = net.stem(torch.zeros(2, 3, 32, 32))
    for layer, block in enumerate(net.layers):
        assert net.feature(hidden, layer).shape == (2, net.feature_sizes[layer])
        hidden = block(hidden, 8)


def test_float_images_equal_bytes_in_any_precision():
    net = small()
    for form, dtype in itertools.product((net, net.to_inference()), (torch.float32, torch.float64)):
        floats = run(form, pictures().to(dtype) / 255, [4, 4, 4])
        torch.testing.assert_close(floats, run(form, pictures(), [4, 4, 4]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x: x * 255, "from 0 to 255"),
        (lambda x: (x - 0.4) / 0.3, r"from -1\.333 to 2.*leave out mean and std"),
        (lambda x: x.masked_fill(x > 0.9, torch.nan), "not finite"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: x.long(), r"torch\.int64"),
    ],
)
def test_images_of_another_range_are_refused(change, named):
    images = pictures() / 255
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(DataError, match=named):
        small()(change(images), 4)


def test_without_normalisation_finite_floats_are_taken():
    net = ResNet(
        ResNetConfig(depth=8, width=4, in_channels=1, image_size=(8, 8)),
        ChannelStatistics((0.0,), (1.0,)),
    ).eval()
    assert net(3 * pictures() / 255 - 1).shape == (32, 10)
    with pytest.raises(DataError, match="not finite"):
        net(torch.full((1, 1, 8, 8), torch.nan))


def test_a_whole_graph_checks_its_images_too():
    net = small(stem_bits=32).requires_grad_(requires_grad=False)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    images = pictures() / 255
    assert torch.equal(compiled(images, 32), net(images, 32))
    for wrong in (255 * images, images - 0.5, images.masked_fill(images > 0.9, torch.nan)):
        with pytest.raises(RuntimeError, match="uint8, or float in"):
            compiled(wrong, 32)
    exported = torch.export.export(net, (pictures(), 32)).module()
    assert torch.equal(exported(pictures(), 32), net(pictures(), 32))
