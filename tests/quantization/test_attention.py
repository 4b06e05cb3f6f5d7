"""Attention at few and at many bits, with masks of every kind, against torch's own."""

import pytest
import torch
from torch.nn import functional

from dfs_rl.quantization import FractionalAttention, to_inference

MASK = torch.tensor([[True, True, False, True], [False] * 4, [False, True, False, False]])


@pytest.mark.parametrize(
    "mask",
    [None, MASK, torch.zeros(3, 4).masked_fill(~MASK, float("-inf")), torch.randn(3, 4)],
    ids=["none", "choice", "infinite", "added"],
)
@torch.no_grad()
def test_attention_equals_torchs_up_to_its_scales(mask):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 4, 8), torch.randn(2, 5, 4, 8)
    rest = () if mask is None else (mask,)
    attention = FractionalAttention((2, 16, 32), scale=None)
    for product in (attention.scores, attention.mix):
        product.calibrate_scales(on=True)
    attention(query, key, value, *rest, 32)
    for product in (attention.scores, attention.mix):
        product.calibrate_scales(on=False)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for form in (attention, to_inference(attention)):
        torch.testing.assert_close(
            form(query, key, value, *rest, 16), expected, rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(form(query, key, value, *rest, 32), expected)
        rough = form(query, key, value, *rest, 2)
        assert torch.isfinite(rough).all()
        assert 0.05 < (rough - expected).abs().max() < 3.0


@pytest.mark.parametrize("masked", ["causal", "grouped"])
@torch.no_grad()
def test_causal_and_grouped_attention_are_torchs_too(masked):
    torch.manual_seed(0)
    heads = 2 if masked == "grouped" else 6
    query, key, value = torch.randn(2, 6, 5, 8), *torch.randn(2, 2, heads, 4, 8)
    attention = FractionalAttention((2, 16, 32), scale=None, **{masked: True})
    for product in (attention.scores, attention.mix):
        product.calibrate_scales(on=True)
    attention(query, key, value, 32)
    for product in (attention.scores, attention.mix):
        product.calibrate_scales(on=False)
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=masked == "causal", enable_gqa=masked == "grouped"
    )
    for form in (attention, to_inference(attention)):
        torch.testing.assert_close(form(query, key, value, 32), expected)
        torch.testing.assert_close(form(query, key, value, 16), expected, rtol=1e-3, atol=1e-3)
        assert (form(query, key, value, 2) - expected).abs().max() > 0.05


def test_a_query_that_sees_nothing_passes_no_gradient_that_is_no_number():
    attention = FractionalAttention((2,), scale=None)
    tensors = [torch.randn(1, 1, n, 8, requires_grad=True) for n in (3, 4, 4)]
    attention(*tensors, MASK, 2).sum().backward()
    for tensor in tensors:
        assert torch.isfinite(tensor.grad).all()
