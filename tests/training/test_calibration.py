"""Measured statistics against averages written out."""

import itertools
from copy import deepcopy

import pytest
import torch

from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.backbones.probe import confidence, pool_grid
from dfs_rl.costs import BitOptions
from dfs_rl.data import ChannelStatistics, ImageSet
from dfs_rl.quantization.functional import QuantRange, mse_scale
from dfs_rl.training.bit_sampling import sample_low_mix, sample_student_mixes
from dfs_rl.training.calibration import (
    calibrate_norms,
    calibrate_scales,
    copy_full_norms,
    fit_skips,
    measure_features,
)
from dfs_rl.utils.seeding import torch_generator


@pytest.fixture
def net() -> ResNet:
    torch.manual_seed(0)
    config = ResNetConfig(depth=8, width=3, in_channels=1, image_size=(8, 8), bits=(0, 4, 32))
    return ResNet(config, ChannelStatistics((0.5,), (0.25,)))


def batches(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator)
        for _ in range(n)
    ]


def test_norms_become_the_mean_over_batches(net):
    images = batches(6)
    net.stem_conv.norm.running_mean.fill_(7.0)  # must leave no trace
    calibrate_norms(net, iter(images), [[(bits,) * len(net.blocks)] for bits in [32, 4] * 3])
    with torch.no_grad():
        conv = net.stem_conv
        x, weight = conv.quantizers(net.normalise(torch.cat(images)), conv.weight, 8)
        outputs = torch.nn.functional.conv2d(x, weight, padding=1)
        torch.testing.assert_close(conv.norm.running_mean[0], outputs.mean(dim=(0, 2, 3)))
        inner = net.layers[0].conv1
        seen = [torch.relu(net_stem_in_batch_mode(net, batch)) for batch in images[0::2]]
        means = [
            torch.nn.functional.conv2d(hidden, inner.weight, padding=1).mean(dim=(0, 2, 3))
            for hidden in seen
        ]
        torch.testing.assert_close(inner.norm.running_mean[1], torch.stack(means).mean(dim=0))

    # Training goes on with its running mean.
    kept = conv.norm.running_mean[0].clone()
    net.train()(images[0], 32)
    own = outputs[:16].mean(dim=(0, 2, 3))
    torch.testing.assert_close(conv.norm.running_mean[0], 0.9 * kept + 0.1 * own)


def net_stem_in_batch_mode(net: ResNet, batch: torch.Tensor) -> torch.Tensor:
    conv = net.stem_conv
    x, weight = conv.quantizers(net.normalise(batch), conv.weight, 8)
    out = torch.nn.functional.conv2d(x, weight, padding=1)
    return torch.nn.functional.batch_norm(out, None, None, training=True, eps=1e-5)


def test_steps_follow_the_input_that_the_layer_sees(net):
    small, large = (torch.full((8, 1, 8, 8), value, dtype=torch.uint8) for value in (150, 250))
    calibrate_scales(net, small, parts=[net.stem_conv])
    before = net.stem_conv.quantizers.input_scale(8).item()
    blocks = [block.conv1.quantizers.input_log_scale.clone() for block in net.layers]
    calibrate_scales(net, large, parts=[net.stem_conv])
    after = net.stem_conv.quantizers.input_scale(8).item()
    # Normalised pixels are (0.588 - 0.5) / 0.25 and (0.980 - 0.5) / 0.25: scales go with them.
    assert after / before == pytest.approx((250 / 255 - 0.5) / (150 / 255 - 0.5), rel=0.02)
    assert all(
        torch.equal(old, block.conv1.quantizers.input_log_scale)
        for old, block in zip(blocks, net.layers, strict=True)
    )


def test_norms_of_all_options_start_from_the_largest(net):
    conv = net.layers[1].conv2
    with torch.no_grad():
        conv.norm.running_mean[-1] = torch.arange(6.0)
        conv.norm.norm_bias[-1] = -torch.arange(6.0)
    copy_full_norms(net)
    assert conv.norm.running_mean.tolist() == [list(range(6))] * 2
    assert (
        conv.norm.norm_bias[0].tolist()
        == conv.norm.norm_bias[1].tolist()
        == [-float(i) for i in range(6)]
    )


def test_feature_statistics_equal_a_second_pass(net):
    net.eval()
    seen = [ImageSet(images, torch.arange(len(images)) % net.n_classes) for images in batches(3)]
    measure_features(net, seen, torch_generator("mix"))
    draws = torch_generator("mix")
    rows: list[list[torch.Tensor]] = [[], [], []]
    with torch.no_grad():
        for batch in seen:
            hidden = net.stem(batch.images)
            for layer, bits in enumerate(sample_low_mix(net.options, 3, draws)):
                rows[layer].append(net.feature(hidden, layer))
                hidden = net.layers[layer](hidden, bits)
    for layer, features in enumerate(torch.cat(parts) for parts in rows):
        size = net.feature_sizes[layer]
        assert features.shape[1] == size
        torch.testing.assert_close(
            net.feature_mean[layer, :size], features.mean(dim=0), rtol=1e-3, atol=1e-4
        )
        deviation = features.std(dim=0, correction=0)
        moving = deviation > 1e-5
        torch.testing.assert_close(
            net.feature_std[layer, :size][moving], deviation[moving], rtol=1e-2, atol=1e-4
        )
        assert (net.feature_std[layer, size:] == 1).all()
        assert (net.feature_mean[layer, size:] == 0).all()


def test_features_begin_with_the_probes_confidence(net):
    net.eval()
    hidden = net.stem(batches(1)[0])
    parts = pool_grid(hidden, grid=net.probe_grid)
    sure = confidence(net.probes[0](parts.flatten(1)))
    expected = torch.cat([sure, hidden.mean(dim=(2, 3))], dim=1)
    torch.testing.assert_close(net.feature(hidden, 0), expected)
    torch.testing.assert_close(
        net.to_inference().feature(hidden, 0), expected, rtol=1e-4, atol=1e-5
    )


def test_half_of_low_mixes_are_uniform():
    options = BitOptions((0, 2, 4, 32))
    generator = torch_generator("settings")
    drawn = [sample_low_mix(options, 6, generator) for _ in range(2000)]
    flat = [mix for mix in drawn if len(set(mix)) == 1]
    assert {mix[0] for mix in flat if mix[0] not in (0, 32)} == {2, 4}
    # A mix of 6 layers over 4 options is uniform by chance in 4 of 4096 draws.
    assert len(flat) / 2000 == pytest.approx(0.5, abs=0.04)
    mixed = torch.tensor([mix for mix in drawn if len(set(mix)) > 1])
    for bits in options:
        assert (mixed == bits).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_full_precision_alone_is_its_own_low_mix():
    assert sample_low_mix(BitOptions((32,)), 2, torch_generator("s")) == (32, 32)


def deep(**changes) -> ResNet:
    shape = {"depth": 14, "width": 2, "image_size": (8, 8), "bits": (0, 2, 8, 32), **changes}
    statistics = ChannelStatistics(mean=(0.5,) * 3, std=(0.3,) * 3)
    return ResNet(ResNetConfig(**shape), statistics)


def test_half_of_adn_mixes_are_the_base_net():
    net, generator = deep(), torch.Generator().manual_seed(0)

    def draw(n, **how):
        return [sample_student_mixes(net, generator, **how) for _ in range(n)]

    skipped = (0,) * 6
    assert all(mixes == [skipped] for mixes in draw(50, recipe="adn", quantized=False))
    assert not any(draw(50, recipe="supernet", quantized=False))
    drawn = draw(2000, recipe="adn", quantized=True)
    # A random mix skips all of six layers in one of 4096 draws.
    assert drawn.count([skipped]) / 2000 == pytest.approx(0.5, abs=0.035)
    assert drawn.count([(2,) * 6]) / 2000 == pytest.approx(0.125, abs=0.03)


def test_elastic_mixes_share_bits_and_differ_in_depth():
    net, generator = deep(depth=20), torch.Generator().manual_seed(0)
    how = {"recipe": "elastic", "quantized": True}
    drawn = [sample_student_mixes(net, generator, **how) for _ in range(2000)]
    nested, skips, uniform = [], 0, []
    for *same, shorter, scattered in drawn:
        whole = same[0]
        assert same == [whole] * 4
        assert 0 not in whole
        uniform += [whole[0]] if len(set(whole)) == 1 else []
        for mix in (shorter, scattered):
            assert {b for b, most in zip(mix, whole, strict=True) if b != most} <= {0}
        runs = torch.tensor(shorter).bool().int().reshape(3, 3)
        assert (runs.diff(dim=1) <= 0).all()  # the first layers of a stage run
        nested.append(tuple(runs.sum(dim=1).tolist()))
        skips += scattered.count(0)
    assert set(nested) == set(itertools.product((1, 2, 3), repeat=3))
    assert nested.count((1, 1, 1)) / 2000 == pytest.approx(0.5 + 0.5 / 27, abs=0.04)
    assert skips / 18000 == pytest.approx(0.25, abs=0.02)
    # A random mix of 9 layers over 3 bit widths is hardly ever uniform.
    assert len(uniform) / 2000 == pytest.approx(0.5, abs=0.04)
    assert uniform.count(2) / len(uniform) == pytest.approx(1 / 3, abs=0.05)


def test_uniform_mixes_leave_out_the_largest_bits():
    options, generator = BitOptions((2, 4, 8)), torch.Generator().manual_seed(0)
    drawn = [sample_low_mix(options, 4, generator) for _ in range(2000)]
    # Half are uniform, of 2 or 4 bit; a random mix is uniform at 8 bit in one of 81 draws.
    shares = [drawn.count((bits,) * 4) / 2000 for bits in (2, 4, 8)]
    assert shares == pytest.approx([0.25 + 0.5 / 81, 0.25 + 0.5 / 81, 0.5 / 81], abs=0.035)


@torch.no_grad()
def test_skips_start_with_the_statistics_of_their_block():
    net = deep(affine_skips=True, width=4).eval()
    images = torch.rand(16, 3, 8, 8)
    fit_skips(net, images)
    hidden = net.stem(images)
    for layer in net.layers:
        theirs = layer(hidden, 32)
        shortcut = hidden
        if theirs.shape != hidden.shape:
            shortcut = torch.nn.functional.pad(
                hidden[:, :, ::2, ::2], (0, 0, 0, 0, 0, theirs.shape[1] - hidden.shape[1])
            )
        ours = shortcut * layer.skip_scale + layer.skip_shift
        mean = theirs.mean(dim=(0, 2, 3))
        torch.testing.assert_close(ours.mean(dim=(0, 2, 3)), mean, rtol=1e-4, atol=1e-5)
        wide = (layer.skip_scale < 1.99).flatten() & (mean > 0)
        spread = [x.std(dim=(0, 2, 3))[wide] for x in (ours, theirs)]
        torch.testing.assert_close(*spread, rtol=1e-4, atol=1e-5)
        hidden = theirs


@pytest.mark.parametrize("untrained", [False, True])
def test_scales_of_an_untrained_network_fit_its_images(net, untrained):
    (images,) = batches(1)
    with torch.no_grad():
        for block in net.layers:
            block.conv1.norm.running_var.fill_(100.0)  # which no batch has
    copy = deepcopy(net).train(untrained)
    seen = []
    copy.layers[2].conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    copy(images, 32)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    calibrate_scales(net, images, parts=[net.blocks], batch_statistics=untrained)
    scale = net.layers[2].conv2.quantizers.input_scale(4)
    torch.testing.assert_close(scale, mse_scale(seen[0].detach(), QuantRange.of(4, signed=False)))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert net.training
