"""Counted multiply-accumulates against products of sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfs_rl.costs.mac_counter import count_macs


def test_macs_of_a_convolution_and_a_linear_layer():
    conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    assert count_macs(lambda: conv(torch.zeros(1, 3, 8, 10))) == 16 * 3 * 9 * 4 * 5
    linear = nn.Linear(7, 5)
    assert count_macs(lambda: linear(torch.zeros(1, 7))) == 35


@pytest.mark.parametrize("settings", [{}, {"is_causal": True}, {"attn_mask": torch.ones(16, 16)}])
def test_macs_of_attention_are_two_products(settings):
    query, key, value = torch.zeros(3, 1, 2, 16, 16)
    written = count_macs(lambda: (query @ key.mT).softmax(-1) @ value)
    assert written == 2 * (2 * 16 * 16 * 16) == 16_384
    fused = functional.scaled_dot_product_attention
    assert count_macs(lambda: fused(query, key, value, **settings)) == written


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_macs_of_attention_do_not_depend_on_the_kernel(need_weights, batch_first):
    tokens, width = 12, 16
    x = torch.zeros((1, tokens, width) if batch_first else (tokens, 1, width))
    layer = nn.MultiheadAttention(width, 4, batch_first=batch_first)
    for training in (True, False):
        layer.train(training)
        macs = count_macs(lambda: layer(x, x, x, need_weights=need_weights)[0])
        assert macs == 4 * tokens * width * width + 2 * tokens * tokens * width


def test_macs_of_torchs_encoder_layer_in_evaluation():
    layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True).eval()
    attention = 4 * 12 * 16 * 16 + 2 * 12 * 12 * 16
    assert count_macs(lambda: layer(torch.zeros(1, 12, 16))) == attention + 2 * 12 * 16 * 40


def test_macs_of_what_torchs_counter_passes_over():
    assert count_macs(lambda: torch.zeros(3, 4) @ torch.zeros(4)) == 12
    assert count_macs(lambda: torch.zeros(4) @ torch.zeros(4)) == 4
    lstm = nn.LSTM(5, 4, num_layers=2)
    gates = 4 * 4 * (5 + 4) + 4 * 4 * (4 + 4)
    assert count_macs(lambda: lstm(torch.zeros(3, 2, 5))[0]) == 3 * 2 * gates
    pairs, weights = nn.Bilinear(5, 6, 7), 7 * 5 * 6
    assert count_macs(lambda: pairs(torch.zeros(2, 5), torch.zeros(2, 6))) == 2 * weights
    assert count_macs(lambda: torch.zeros(3).addmv(torch.zeros(3, 4), torch.zeros(4))) == 3 * 4
    batches = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    assert count_macs(lambda: torch.zeros(3, 5).addbmm(*batches)) == 2 * 3 * 4 * 5


@pytest.mark.parametrize("rows", [3, 40])  # torch multiplies matrices from 26 rows on
def test_distances_cost_as_much_as_products(rows):
    first, second = torch.zeros(2, rows, 8), torch.zeros(2, 5, 8)
    assert count_macs(lambda: torch.cdist(first, second)) == 2 * rows * 5 * 8


class Product(nn.Module):
    def forward(self, first, second):
        return first @ second


@pytest.mark.parametrize(
    ("first", "second", "macs"),
    [
        (lambda w: torch.zeros(3, 8), lambda w: w[0].T, 3 * 8 * 5),
        (lambda w: w[1], lambda w: torch.zeros(8, 7), 5 * 8 * 7),
        (lambda w: w[:1].expand(3, -1, -1), lambda w: torch.zeros(3, 8, 6), 3 * 5 * 8 * 6),
        (lambda w: w, lambda w: w.mT, 2 * 5 * 8 * 5),
        (lambda w: torch.zeros(4, 2), lambda w: w.view(2, 40), 4 * 2 * 40),
    ],
)
def test_macs_with_views_of_a_parameter(first, second, macs):
    weight, product = nn.Parameter(torch.zeros(2, 5, 8)), Product()
    assert count_macs(lambda: product(first(weight), second(weight))) == macs
