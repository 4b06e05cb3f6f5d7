import copy
import pickle

import pytest
import torch
from torch.nn import functional

from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics
from dfs_rl.quant import integer
from dfs_rl.quant.integer import IntegerConv2d, integer_convolutions_are_exact, to_uint8_codes

CHANNELS_LAST = torch.channels_last
on_exact_cpus = pytest.mark.skipif(
    not integer_convolutions_are_exact(), reason="this CPU has no exact 8-bit convolutions"
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("highest", [1, 3, 15, 255])
def test_codes_equal_rounding_then_clamping(highest):
    x = torch.randn(3, 4, 5, 5, generator=random()).mul(3.0).contiguous(memory_format=CHANNELS_LAST)
    x[0, 0, 0] = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e6])  # ties and values outside
    for inverse in (1.0, 0.37, 41.0):
        codes = to_uint8_codes(x, torch.tensor(inverse), highest)
        assert codes.dtype == torch.uint8
        assert torch.equal(codes.float(), (x * inverse).round().clamp(0, highest))


@on_exact_cpus
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("channels", "out", "stride", "kernel"), [(4, 4, 1, 3), (16, 32, 2, 3), (16, 4, 1, 1)]
)
def test_equals_the_floating_point_convolution_bit_for_bit(channels, out, stride, kernel, bits):
    highest = 2**bits - 1
    codes = torch.randint(0, highest + 1, (5, channels, 9, 9), generator=random()).float()
    codes = codes.contiguous(memory_format=CHANNELS_LAST)
    weight = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (out, channels, kernel, kernel), generator=random(1)
    ).float()
    scale, bias = (
        torch.randn(out, generator=random(2)) * 0.01,
        torch.randn(out, generator=random(3)),
    )
    scale[0] = 0.0
    sums = functional.conv2d(codes, weight, stride=stride, padding=kernel // 2)
    expected = sums * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    convolution = IntegerConv2d(weight, scale, bias, stride=stride)
    small = codes.to(torch.uint8)
    assert torch.equal(convolution(small), expected)
    assert torch.equal(convolution(small[2:3]), expected[2:3])
    step = float(expected.abs().amax()) / 3.0 / highest
    rounded = convolution.to_codes(small, step=step, highest=highest)
    assert torch.equal(rounded.float(), (expected / step).round().clamp(0, highest))
    for again in (copy.deepcopy(convolution), pickle.loads(pickle.dumps(convolution))):
        assert torch.equal(again(small), expected)


@on_exact_cpus
def test_a_frozen_network_gives_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    statistics = ChannelStatistics(mean=(0.5,), std=(0.25,))
    network = ResNet(
        ResNetConfig(depth=8, width=4, in_channels=1, image_size=(8, 8)), statistics
    ).eval()
    frozen = network.prepare()
    images = torch.randint(0, 256, (9, 1, 8, 8), generator=random(), dtype=torch.uint8)

    def logits(bits):
        hidden = frozen.stem(images)
        for layer in frozen.layers:
            hidden = layer(hidden, bits)
        return frozen.head(hidden)

    with torch.inference_mode():
        integers = [logits(bits) for bits in (2, 3, 4, 8)]
        monkeypatch.setattr("dfs_rl.quant.prepared.integer_convolutions_are_exact", lambda: False)
        floats = [logits(bits) for bits in (2, 3, 4, 8)]
    for ours, theirs in zip(integers, floats, strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_operators_it_is_not_used(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no such operator")

    integer_convolutions_are_exact.cache_clear()
    monkeypatch.setattr(integer, "IntegerConv2d", missing)
    assert not integer_convolutions_are_exact()
    integer_convolutions_are_exact.cache_clear()
