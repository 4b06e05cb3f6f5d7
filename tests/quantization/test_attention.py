"""Attention at few and at many bits, with masks of every kind, against torch's own."""

import pytest
import torch
from torch.nn import functional

from dfs_rl.quantization import FractionalAttention, to_inference
from dfs_rl.quantization.modules import calibrating

MASK = torch.tensor([[True, True, False, True], [False] * 4, [False, True, False, False]])


CASES = {
    "plain": (None, {}, {}),
    "choice": (MASK, {}, {}),
    "infinite": (torch.zeros(3, 4).masked_fill(~MASK, float("-inf")), {}, {}),
    "added": (torch.randn(3, 4), {}, {}),
    "causal": (None, {"causal": True}, {"is_causal": True}),
    "grouped": (None, {"grouped": True}, {"enable_gqa": True}),
}


@pytest.mark.parametrize(("mask", "ours", "torchs"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_attention_equals_torchs_up_to_its_scales(mask, ours, torchs):
    torch.manual_seed(0)
    heads = 2 if "grouped" in ours else 6
    query, key, value = torch.randn(2, 6, 3, 8), *torch.randn(2, 2, heads, 4, 8)
    arguments = (query, key, value) if mask is None else (query, key, value, mask)
    attention = FractionalAttention((2, 16, 32), scale=None, **ours)
    with calibrating([attention.scores, attention.mix]):
        attention(*arguments, 32)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **torchs)
    for form in (attention, to_inference(attention)):
        torch.testing.assert_close(form(*arguments, 32), expected)
        torch.testing.assert_close(form(*arguments, 16), expected, rtol=1e-3, atol=1e-3)
        rough = form(*arguments, 2)
        assert torch.isfinite(rough).all()
        assert 0.05 < (rough - expected).abs().max() < 3.0


def test_a_query_without_keys_has_a_finite_gradient():
    attention = FractionalAttention((2,), scale=None)
    tensors = [torch.randn(1, 1, n, 8, requires_grad=True) for n in (3, 4, 4)]
    attention(*tensors, MASK, 2).sum().backward()
    for tensor in tensors:
        assert torch.isfinite(tensor.grad).all()
