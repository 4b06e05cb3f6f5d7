"""Bit options, MACs and what choices cost, against sums written out by hand."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional

from dfs_rl.costs import (
    ALLOWED_BITS,
    BitOptions,
    CostTable,
    FixedCost,
    parse_bit_options,
)
from dfs_rl.costs.cost_models import computation
from dfs_rl.costs.mac_counter import count_macs
from dfs_rl.errors import ConfigError


def test_cost_of_an_option_is_dfs_measure():
    costs = [computation(1.0, bits) for bits in (0, 2, 3, 4, 8, 16, 32)]
    assert costs == [0.0, 0.00390625, 0.0087890625, 0.015625, 0.0625, 0.25, 1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), "non-empty, strictly ascending"),
        ((4, 2), "strictly ascending"),
        ((2, 2), "strictly ascending"),
        ((0, 9), r"contain 9; allowed are \[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 32\]"),
        ((-1, 2), "contain -1"),
        ((2, 64), "contain 64"),
    ],
)
def test_bad_bit_options(values, words):
    with pytest.raises(ConfigError, match=words):
        BitOptions(values)


@pytest.mark.parametrize(
    "bits", ["dfs", ("dfs",), [0, 8, 10, 12, 14, 16, 32], (0, 8, 10, 12, 14, 16, 32)]
)
def test_bit_options_are_known_by_name_and_by_widths(bits):
    assert parse_bit_options(bits) == (0, 8, 10, 12, 14, 16, 32)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (
            "paper",
            r"bits has 'paper'; allowed are bit widths among \[0, 1, .*, or the name .*: dfs",
        ),
        (("dfs", 32), "bits has 'dfs'; .* the name of a set alone"),
        ((0, "x"), "bits has 'x'"),
        ((8, 0), "strictly ascending"),
    ],
)
def test_unknown_bit_options(bits, words):
    with pytest.raises(ConfigError, match=words):
        parse_bit_options(bits)


@given(st.sets(st.sampled_from(ALLOWED_BITS), min_size=1))
def test_index_and_bits_are_inverse(values):
    options = BitOptions(tuple(sorted(values)))
    assert [options[options.index(b)] for b in options] == sorted(values)
    assert options.indices(options) == tuple(range(len(options)))


@st.composite
def tables(draw):
    bit_options = BitOptions(
        tuple(sorted(draw(st.sets(st.sampled_from(ALLOWED_BITS), min_size=1))))
    )
    macs = tuple(draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=6)))
    fixed = (FixedCost(name="stem", macs=draw(st.integers(0, 10**6)), bits=8),)
    return CostTable(options=bit_options, layer_macs=macs, fixed=fixed)


@given(table=tables(), seed=st.integers(0, 2**31), gate=st.integers(0, 10**5))
def test_computation_and_bitops_equal_a_loop(table, seed, gate):
    generator = torch.Generator().manual_seed(seed)
    options = torch.randint(len(table.options), (4, table.n_layers), generator=generator)
    for row, full, dfs, bitops in zip(
        options.tolist(),
        table.computation(options, gate_macs=gate).tolist(),
        table.computation(options, counting="dfs").tolist(),
        table.bitops(options, gate_macs=gate).tolist(),
        strict=True,
    ):
        gated = sum(
            macs * table.options[option] ** 2
            for macs, option in zip(table.layer_macs, row, strict=True)
        )
        fixed = sum(part.macs * part.bits**2 for part in table.fixed) + gate * 32**2
        reference = sum(table.layer_macs) * 32**2
        assert dfs == pytest.approx(100 * gated / reference)
        assert full == pytest.approx(100 * (gated + fixed) / reference)
        assert bitops == pytest.approx(gated + fixed)


@given(table=tables())
def test_cost_grows_with_bits_up_to_one(table):
    costs = table.option_costs()
    assert bool((costs.diff(dim=1) > 0).all())
    if 32 in table.options:
        assert costs[:, -1].sum().item() == pytest.approx(1.0)


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
