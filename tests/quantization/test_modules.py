"""Fractional layers and their inference forms against torch's own operators."""

import copy
import functools

import pytest
import torch
from torch import nn

from dfs_rl.errors import ConfigError
from dfs_rl.quantization import (
    FractionalConvNorm,
    FractionalLinear,
    QuantRange,
    fake_quantize,
    inference_form,
    to_inference,
)
from dfs_rl.quantization.inference import InferenceConv2d
from dfs_rl.quantization.modules import LayerQuantizers, calibrating

BITS = (1, 2, 3, 4, 8, 10, 14, 16, 32)


@functools.cache
def settled_conv(*, per_channel: bool = False, signed_input: bool = False) -> FractionalConvNorm:
    """A convolution with calibrated scales and running statistics that are neither zero nor one.

    It is not to be changed.
    """
    torch.manual_seed(0)
    conv = FractionalConvNorm(3, 5, BITS, per_channel=per_channel, signed_input=signed_input)
    with calibrating([conv]):
        conv(images(signed=signed_input), 32)
    with torch.no_grad():
        conv.norm.norm_weight.uniform_(0.5, 1.5)
        conv.norm.norm_bias.uniform_(-0.5, 0.5)
        for bits in BITS:
            for _ in range(5):
                conv(images(signed=signed_input), bits)
    return conv.eval()


def images(*, signed: bool = False, n: int = 6) -> torch.Tensor:
    x = torch.randn(n, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    return x if signed else x.relu()


def quantized(layer, x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the input and the weight of a layer."""
    if bits == 32:
        return x, layer.weight
    q, weight = layer.quantizers, layer.weight
    return (
        fake_quantize(x, q.input_scale(bits), QuantRange.of(bits, signed=q.signed_input)),
        fake_quantize(weight, q.weight_scale(bits, weight), QuantRange.of(bits, signed=True)),
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed_input", [False, True])
@torch.no_grad()
def test_both_forms_equal_torch_convolution_and_norm(bits, per_channel, signed_input):
    conv = settled_conv(per_channel=per_channel, signed_input=signed_input)
    x, norm = images(signed=signed_input), conv.norm
    tensors = (norm.running_mean, norm.running_var, norm.norm_weight, norm.norm_bias)
    plain = nn.functional.conv2d(*quantized(conv, x, bits), padding=1)
    expected = nn.functional.batch_norm(plain, *(t[BITS.index(bits)] for t in tensors))
    torch.testing.assert_close(conv(x, bits), expected, rtol=1e-5, atol=1e-5)
    frozen = InferenceConv2d(conv, bits)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_inference_form_in_any_batch_and_in_bfloat16(bits):
    conv, x = settled_conv(), images(n=16)
    frozen = InferenceConv2d(conv, bits)
    together = frozen(x)
    assert torch.equal(together, torch.cat([frozen(x[i : i + 1]) for i in range(len(x))]))
    rounded = InferenceConv2d(conv, bits, dtype=torch.bfloat16)
    assert torch.equal(frozen.weight, rounded.weight.float())
    # Three roundings to 8 significant bits: the sum of products, its scaling, the shift.
    torch.testing.assert_close(rounded(x).float(), together, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kernel_size", "groups"), [(1, 1), (3, 1), (3, 3), (7, 1)])
@pytest.mark.parametrize("bits", [4, 32])
def test_each_set_of_norms_works_behind_any_kernel(kernel_size, groups, bits):
    torch.manual_seed(0)
    conv = FractionalConvNorm(
        3, 6, (4, 32), kernel_size=kernel_size, stride=2, groups=groups, norm_sets=2
    )
    with calibrating([conv]):
        conv(images(), 32)
    with torch.no_grad():
        for tensor in conv.norm.state_dict().values():
            tensor.uniform_(0.5, 1.5)
    conv.eval()
    x, weight = (images(), conv.weight) if bits == 32 else conv.quantizers(images(), conv.weight, 4)
    padding = (kernel_size - 1) // 2
    plain = nn.functional.conv2d(x, weight, stride=2, padding=padding, groups=groups)
    for norm_set in range(2):
        row = norm_set * 2 + (4, 32).index(bits)
        weight, bias, mean, variance = (t[row] for t in conv.norm.state_dict().values())
        expected = nn.functional.batch_norm(plain, mean, variance, weight, bias)
        torch.testing.assert_close(conv(images(), bits, norm_set), expected)
        frozen = InferenceConv2d(conv, bits, norm_set)
        torch.testing.assert_close(frozen(images()), expected, rtol=1e-4, atol=1e-4)


def test_norms_start_from_the_largest_of_their_set():
    conv = FractionalConvNorm(3, 5, (2, 4, 32), norm_sets=2)
    with torch.no_grad():
        conv.norm.running_mean.copy_(torch.arange(6.0)[:, None].expand(6, 5))
    conv.norm.copy_full_norm()
    assert conv.norm.running_mean[:, 0].tolist() == [2, 2, 2, 5, 5, 5]


def test_training_changes_only_what_bits_that_ran_have():
    conv, i = copy.deepcopy(settled_conv()).train(), BITS.index(3)
    before = conv.norm.running_mean.clone()
    conv(images() + 1.0, 3).square().sum().backward()
    moved = (conv.norm.running_mean != before).any(dim=1).tolist()
    assert moved == [k == i for k in range(len(BITS))]
    assert conv.weight.grad.abs().sum() > 0
    for parameter in (conv.quantizers.input_log_scale, conv.norm.norm_weight):
        touched = parameter.grad.reshape(len(parameter), -1).abs().sum(dim=1) > 0
        assert touched.tolist() == [k == i for k in range(len(parameter))]


@pytest.mark.parametrize("channels", [None, 4])
def test_scale_gradients_are_those_of_lsq(channels):
    generator = torch.Generator().manual_seed(0)
    x, weight = (6 * torch.rand(n, 6, generator=generator) for n in (5, 4))
    weight -= 3
    quantizers = LayerQuantizers((3, 32), signed_input=False, channels=channels)  # scales of 1
    sum(part.sum() for part in quantizers(x, weight, 3)).backward()
    # Rounding errors over the root of elements, of one image or kernel, times the largest code.
    errors = (x.round() - x).sum() / (6 * 7) ** 0.5
    torch.testing.assert_close(quantizers.input_log_scale.grad, errors[None])
    errors = (weight.round() - weight).reshape(channels or 1, -1)
    errors = errors.sum(dim=1) / (errors.shape[1] * 3) ** 0.5
    torch.testing.assert_close(quantizers.weight_log_scale.grad.flatten(), errors)


def test_conversion_copies_a_tree_and_leaves_it_alone():
    tree = nn.Sequential(nn.ReLU(), nn.ModuleDict({"a": FractionalLinear(3, 2, bits=(4, 32))}))
    tree.extra = nn.Parameter(torch.ones(2))
    form = to_inference(tree)
    assert type(form) is nn.Sequential
    assert type(tree[1]["a"]) is FractionalLinear
    assert not form.extra.requires_grad
    again = copy.deepcopy(form)
    x = torch.randn(5, 3)
    before = form[1]["a"](x, 32)
    with torch.no_grad():
        tree.extra.zero_()
        tree[1]["a"].weight.zero_()
        for value in again.state_dict().values():
            value.zero_()
    assert torch.equal(form[1]["a"](x, 32), before)
    assert torch.equal(again[1]["a"](x, 32), torch.zeros(5, 2))
    assert form.extra.tolist() == [1.0, 1.0]


def test_registered_form_replaces_type_and_subclasses(monkeypatch):
    class Doubling(nn.Module):
        pass

    class Tripling(Doubling):
        pass

    monkeypatch.setattr("dfs_rl.quantization.inference._FORMS", {})
    inference_form(Doubling)(lambda module, dtype: nn.Identity())
    assert type(to_inference(nn.Sequential(Tripling()))[0]) is nn.Identity


@pytest.mark.parametrize("bits", [1, 4, 8, 32])
def test_linear_forms_equal_torch(bits):
    torch.manual_seed(0)
    layer = FractionalLinear(6, 4, bits=bits)
    x = torch.rand(9, 6)
    with calibrating([layer]):
        layer(x)
    expected = nn.functional.linear(*quantized(layer, x, bits), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(to_inference(layer)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_no_images_give_no_outputs(bits):
    conv, nothing = settled_conv(), torch.zeros(0, 3, 7, 9)
    for form in (conv, to_inference(conv)):
        assert form(nothing, bits).shape == (0, 5, 7, 9)


def test_a_convolution_cannot_run_at_0_bit():
    with pytest.raises(ConfigError, match=r"bits is \[0, 4\]"):
        FractionalConvNorm(3, 5, (0, 4))
