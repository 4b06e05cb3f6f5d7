"""Quantizers against PyTorch's own operators and against definitions written out."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dfs_rl.errors import ConfigError
from dfs_rl.quantization import QuantRange, fake_quantize, mse_scale, to_codes

MULTI_BIT = st.sampled_from([2, 3, 4, 5, 6, 7, 8])
SEEDS = st.integers(0, 2**31)
SCALES = st.floats(1e-3, 3.0)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3.0


@given(seed=SEEDS, bits=MULTI_BIT, signed=st.booleans(), scale=SCALES)
def test_values_and_gradients_equal_torch_per_tensor(seed, bits, signed, scale):
    quant_range = QuantRange.of(bits, signed=signed)
    ours = draw(seed, 40).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    output = fake_quantize(ours, torch.tensor(scale), quant_range)
    expected = torch.fake_quantize_per_tensor_affine(
        theirs, scale, 0, quant_range.qmin, quant_range.qmax
    )
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-7)
    output.sum().backward()
    expected.sum().backward()
    # At the very ends of the range torch lets a gradient pass for values that round onto it, LSQ
    # for those that lie within: they differ within half a scale beyond the ends.
    scaled = ours.detach() / scale
    inside = (scaled >= quant_range.qmin) & (scaled <= quant_range.qmax)
    beyond = (scaled < quant_range.qmin - 0.5) | (scaled > quant_range.qmax + 0.5)
    settled = inside | beyond
    assert torch.equal(ours.grad[settled], theirs.grad[settled])
    assert torch.equal(ours.grad, inside.float())


@given(seed=SEEDS, bits=MULTI_BIT)
def test_values_equal_torch_per_channel(seed, bits):
    quant_range = QuantRange.of(bits, signed=True)
    weight = draw(seed, 5, 4, 3, 3)
    scale = draw(seed + 1, 5).abs() + 0.01
    output = fake_quantize(weight, scale.reshape(5, 1, 1, 1), quant_range)
    expected = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(5, dtype=torch.int32), 0, quant_range.qmin, quant_range.qmax
    )
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, bits=st.sampled_from([2, 3, 4, 8]), signed=st.booleans(), scale=SCALES)
def test_scale_gradient_equals_torch_operator(seed, bits, signed, scale):
    quant_range = QuantRange.of(bits, signed=signed)
    x = draw(seed, 60)
    scaled = x / scale
    # Ends of the range again: leave out what lies within half a scale of them.
    for end in (quant_range.qmin, quant_range.qmax):
        x = torch.where((scaled - end).abs() <= 0.51, torch.zeros(()), x)
    ours = torch.tensor(scale, requires_grad=True)
    theirs = torch.tensor([scale], requires_grad=True)
    weights = draw(seed + 1, 60)
    (fake_quantize(x, ours, quant_range, gradient_scale=0.25) * weights).sum().backward()
    learnable = torch._fake_quantize_learnable_per_tensor_affine(
        x, theirs, torch.zeros(1), quant_range.qmin, quant_range.qmax, 0.25
    )
    (learnable * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad[0], rtol=1e-3, atol=1e-3)


@given(
    seed=SEEDS,
    bits=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]),
    signed=st.booleans(),
    scale=SCALES,
)
def test_output_lies_in_the_range_and_stays_there(seed, bits, signed, scale):
    quant_range = QuantRange.of(bits, signed=signed)
    once = fake_quantize(draw(seed, 50), torch.tensor(scale), quant_range)
    multiples = once.double() / scale
    assert torch.allclose(multiples, multiples.round(), atol=1e-4 * max(1, quant_range.qmax))
    assert multiples.min() >= quant_range.qmin - 0.01
    assert multiples.max() <= quant_range.qmax + 0.01
    if bits <= 8:
        torch.testing.assert_close(fake_quantize(once, torch.tensor(scale), quant_range), once)


@pytest.mark.parametrize("signed", [True, False])
def test_number_of_levels(signed):
    x = torch.linspace(-300, 300, 100_001)
    for bits in range(1, 9):
        codes = to_codes(x, torch.tensor(1.0), QuantRange.of(bits, signed=signed))
        assert len(torch.unique(codes)) == 2**bits


@pytest.mark.parametrize(
    ("signed", "expected"), [(True, [-0.5, -0.5, 0.5, 0.5]), (False, [0.0, 0.0, 0.0, 0.5])]
)
def test_one_bit_weights_are_signs_activations_0_or_1(signed, expected):
    x, quant_range = torch.tensor([-2.0, -0.1, 0.1, 2.0]), QuantRange.of(1, signed=signed)
    assert fake_quantize(x, torch.tensor(0.5), quant_range).tolist() == expected


@pytest.mark.parametrize("bits", [0, 9, 32])
def test_bits_without_a_quantizer_are_refused(bits):
    with pytest.raises(ConfigError, match=f"no quantizer has {bits} bit; allowed are"):
        QuantRange.of(bits, signed=True)


@given(seed=SEEDS, bits=st.sampled_from([1, 2, 4, 8]), signed=st.booleans())
def test_mse_scale_is_near_that_of_a_fine_search(seed, bits, signed):
    x = draw(seed, 400)
    x = x if signed else x.relu()
    quant_range = QuantRange.of(bits, signed=signed)

    def error(scale: torch.Tensor) -> float:
        return float((fake_quantize(x, scale, quant_range) - x).square().mean())

    reach = float(x.abs().max()) / max(quant_range.qmax, -quant_range.qmin)
    best = min(error(torch.tensor(reach * k / 1000)) for k in range(20, 1200, 6))
    assert error(mse_scale(x, quant_range)) <= 1.3 * best + 1e-9


def test_mse_scale_per_channel_equals_channels_alone():
    weight, quant_range = draw(3, 6, 4, 3, 3), QuantRange.of(4, signed=True)
    weight[2] = 0.0
    together = mse_scale(weight, quant_range, per_channel=True)
    alone = torch.stack([mse_scale(channel, quant_range) for channel in weight])
    torch.testing.assert_close(together, alone)
    assert (together > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "quant_range", [QuantRange.of(2, signed=True), QuantRange.of(3, signed=False)]
)
def test_a_ranges_ends_are_inside_it(dtype, quant_range):
    scale = torch.tensor(0.5, requires_grad=True)
    below, above = quant_range.qmin - 0.125, quant_range.qmax + 0.125
    x = (
        torch.tensor([below, quant_range.qmin, 0.0, 0.75, quant_range.qmax, above], dtype=dtype)
        * 0.5
    )
    x.requires_grad_()
    fake_quantize(x, scale, quant_range).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    # The ends outside, and the rounding error of 0.75 inside.
    assert scale.grad.item() == quant_range.qmin + quant_range.qmax + 0.25


def test_gradients_keep_the_layout_of_activations():
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = fake_quantize(x, torch.tensor(0.5, requires_grad=True), QuantRange.of(2, signed=True))
    gradient = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(out, x, gradient)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert found.is_contiguous(memory_format=torch.channels_last)
