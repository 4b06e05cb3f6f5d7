import copy
import functools
import pickle

import pytest
import torch
from torch.nn import functional

from dfs_rl import calibrate, fractionalize
from dfs_rl.backbones import Fractionalized, GatedBackbone, ResNet, ResNetConfig
from dfs_rl.data import ChannelStatistics
from dfs_rl.quantization import int8
from dfs_rl.quantization.int8 import IntegerConv2d, integer_convolutions_are_exact, to_uint8_codes
from dfs_rl.quantization.modules import ConvGeometry
from tests.helpers.models import NETS, examples, lived_in, pictures
from tests.helpers.networks import run

CHANNELS_LAST = torch.channels_last
on_exact_cpus = pytest.mark.skipif(
    not integer_convolutions_are_exact(), reason="this CPU has no exact 8-bit convolutions"
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("qmax", [1, 3, 15, 255])
def test_codes_equal_rounding_then_clamping(qmax):
    x = torch.randn(3, 4, 5, 5, generator=random()).mul(3.0).contiguous(memory_format=CHANNELS_LAST)
    x[0, 0, 0] = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e6])  # ties and values outside
    for inverse in (1.0, 0.37, 41.0):
        codes = to_uint8_codes(x, torch.tensor(inverse), qmax)
        assert codes.dtype == torch.uint8
        assert torch.equal(codes.float(), (x * inverse).round().clamp(0, qmax))


GEOMETRIES = [
    (4, 4, (3, 3), ConvGeometry(padding=(1, 1))),
    (16, 32, (3, 3), ConvGeometry(stride=(2, 2), padding=(1, 1))),
    (16, 4, (1, 1), ConvGeometry()),
    (8, 6, (4, 3), ConvGeometry(stride=(3, 1), padding=(2, 0), dilation=(1, 2))),
]


@on_exact_cpus
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", [CHANNELS_LAST, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "out", "kernel", "geometry"), GEOMETRIES)
def test_equals_floating_point_convolution_exactly(channels, out, kernel, geometry, layout, bits):
    qmax, reach = 2**bits - 1, 2 ** (bits - 1)
    codes = torch.randint(0, qmax + 1, (5, channels, 12, 9), generator=random()).float()
    codes = codes.contiguous(memory_format=layout)
    weight = torch.randint(-reach, reach, (out, channels, *kernel), generator=random(1)).float()
    scale, bias = torch.randn(2, out, generator=random(2)) * 0.01
    scale[0] = 0.0
    sums = functional.conv2d(
        codes, weight, None, geometry.stride, geometry.padding, geometry.dilation
    )
    expected = sums * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    make = functools.partial(IntegerConv2d, weight, scale, bias, geometry=geometry, qmax=qmax)
    convolution = make(inverse_input_scale=torch.tensor(0.5))
    assert torch.equal(convolution.codes_of(0.5 * codes).float(), (0.25 * codes).round())
    small = codes.to(torch.uint8)
    assert torch.equal(convolution(small), expected)
    assert torch.equal(convolution(small[2:3]), expected[2:3])
    output_scale = float(expected.abs().amax()) / 3.0 / qmax
    following = make(inverse_input_scale=torch.tensor(1.0 / output_scale))
    rounded = convolution.to_codes(small, following)
    assert torch.equal(rounded.float(), (expected / output_scale).round().clamp(0, qmax))
    for again in (copy.deepcopy(convolution), pickle.loads(pickle.dumps(convolution))):
        assert torch.equal(again(small), expected)


@functools.cache
def _calibrated() -> Fractionalized:
    backbone = fractionalize(lived_in(NETS["resnet"]), examples(), bits=(0, 2, 8, 32))
    calibrate(backbone, pictures())
    return backbone


def logits_of(net: GatedBackbone, images: torch.Tensor, bits: int = 8) -> torch.Tensor:
    with torch.inference_mode():
        return run(net, images, (bits,) * len(net.layers))


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    config = ResNetConfig(depth=8, width=4, in_channels=1, image_size=(8, 8))
    return ResNet(config, ChannelStatistics(mean=(0.5,), std=(0.25,))).eval()


@on_exact_cpus
@pytest.mark.parametrize(
    ("make", "tolerance"), [(_calibrated, 1e-5), (small_resnet, 0.0)], ids=["users", "resnet"]
)
def test_networks_compute_the_same_without_integers(make, tolerance, monkeypatch):
    frozen = make().to_inference()
    images = pictures() if make is _calibrated else pictures()[:, :1, :8, :8]
    used = []
    called = IntegerConv2d.__call__
    monkeypatch.setattr(
        IntegerConv2d, "__call__", lambda *args: used.append(args[0]) or called(*args)
    )
    integers = [logits_of(frozen, images, bits) for bits in (2, 8)]
    # Two convolutions a block, twice.
    assert len(used) >= (2 * 2 * len(frozen.layers) if make is _calibrated else 0)
    used.clear()
    monkeypatch.setattr(
        "dfs_rl.quantization.inference.integer_convolutions_are_exact", lambda: False
    )
    floats = [logits_of(frozen, images, bits) for bits in (2, 8)]
    assert not used
    for ours, theirs in zip(integers, floats, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_loaded_weights_replace_packed_ones():
    first, second = (copy.deepcopy(_calibrated()) for _ in range(2))
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if "norm" in name:
                parameter.mul_(1.1)
    frozen, expected = first.to_inference(), logits_of(second.to_inference(), pictures())
    assert not torch.allclose(logits_of(frozen, pictures()), expected, atol=1e-4)
    frozen.load_state_dict(second.to_inference().state_dict())
    assert torch.equal(logits_of(frozen, pictures()), expected)


def test_weights_that_are_not_finite_give_no_answer():
    backbone = copy.deepcopy(_calibrated())
    assert logits_of(backbone.to_inference(), pictures()).isfinite().all()
    convolution = next(iter(backbone.layers[1].ops.values()))
    with torch.no_grad():
        convolution.weight[0, 0, 0, 0] = torch.nan
    assert not logits_of(backbone.to_inference(), pictures()).isfinite().any()


def test_without_the_operators_it_is_not_used(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no such operator")

    integer_convolutions_are_exact.cache_clear()
    monkeypatch.setattr(int8, "IntegerConv2d", missing)
    assert not integer_convolutions_are_exact()
    integer_convolutions_are_exact.cache_clear()
