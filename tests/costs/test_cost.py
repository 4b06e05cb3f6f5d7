"""Bit options, MACs and what choices cost, against sums written out by hand."""

import itertools
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dfs_rl.costs import ALLOWED_BITS, BitOptions, CostTable, ExitCost, FixedCost, parse_bit_options
from dfs_rl.errors import ConfigError


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


# Exits

MACS = (100, 300, 200, 400)
LEAVE = 3


def table(bit_options=(0, 4, 32), after=(1, 3), head=16):
    return CostTable(
        options=BitOptions(bit_options),
        layer_macs=MACS,
        fixed=(
            FixedCost(name="stem", macs=64, bits=8),
            FixedCost(name="head", macs=head, bits=32, layer=len(MACS)),
        ),
        exits=tuple(ExitCost(after=a, macs=20 * (a + 1), bits=16) for a in after),
    )


def test_image_that_exits_skips_later_fixed_parts():
    parts = (
        FixedCost(name="stem", macs=64, bits=32),
        *(FixedCost(name="mandatory", macs=10 * 2**n, bits=32, layer=n) for n in range(4)),
        FixedCost(name="head", macs=16, bits=32, layer=4),
    )
    costs = replace(table(), fixed=parts)
    options = torch.tensor([[0, LEAVE, LEAVE, LEAVE], [0, 0, 0, LEAVE], [0, 0, 0, 0]])
    by_hand = [64 + 10 + 40 / 4, 64 + 10 + 20 + 40 + 80 / 4, 64 + 150 + 16]
    assert (costs.computation(options) * 10).tolist() == pytest.approx(by_hand)


def test_image_that_exits_costs_its_exit_alone():
    costs = table()
    options = torch.tensor([[2, LEAVE, LEAVE, LEAVE], [1, 2, 0, LEAVE], [1, 1, 1, 1]])
    stem, quarter, small = 64 / 16, 1 / 4, 1 / 64
    expected = [
        stem + 100 + 40 * quarter,
        stem + 100 * small + 300 + 80 * quarter,
        stem + 1000 * small + 16,
    ]
    assert costs.computation(options).tolist() == pytest.approx([e / 10 for e in expected])
    gated = [100, 100 * small + 300, 1000 * small]
    dfs = costs.computation(options, counting="dfs")
    assert dfs.tolist() == pytest.approx([g / 10 for g in gated])
    assert costs.bitops(options).tolist() == pytest.approx([e * 1024 for e in expected])
    gate = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with_gate = costs.computation(options, gate_macs=gate)
    assert with_gate.tolist() == pytest.approx(
        [(e + g) / 10 for e, g in zip(expected, gate.tolist(), strict=True)]
    )
    assert costs.n_layers_run(options).tolist() == [1, 3, 4]


def test_exit_action_costs_its_exit_or_least_option():
    costs = table((8, 16, 32))
    sixteenth, quarter = 1 / 16, 1 / 4
    exits = [100 * sixteenth, 40 * quarter - 16, 200 * sixteenth, 80 * quarter - 16]
    assert costs.action_costs().shape == (4, 4)
    assert costs.action_costs()[:, LEAVE].tolist() == pytest.approx([e / 1000 for e in exits])
    assert torch.equal(costs.action_costs()[:, :LEAVE], costs.option_costs())
    without = table(after=())
    assert without.n_actions == 3
    assert torch.equal(without.action_costs(), without.option_costs())


@pytest.mark.parametrize("bit_options", [(0, 4, 32), (2, 4, 8)])
@pytest.mark.parametrize("after", [(), (0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("head", [0, 16, 90])
def test_the_cheapest_way_on_is_the_least_of_all_ways(bit_options, after, head):
    costs = table(bit_options, after, head)
    every = torch.tensor(list(itertools.product(range(costs.n_actions), repeat=4)))
    ways = costs.canonicalize(every)
    spent = costs.fractions(ways)
    assert float(costs.least_costs()[0]) == pytest.approx(float(spent.min()), abs=1e-15)
    assert float(costs.least_costs()[4]) == 0.0


def test_actions_are_closed_to_what_an_image_does():
    costs = table()
    asked = torch.tensor([[LEAVE, 1, LEAVE, 2], [LEAVE, LEAVE, 1, 2], [1, 2, 1, LEAVE]])
    done = [[0, 1, 0, 2], [0, LEAVE, LEAVE, LEAVE], [1, 2, 1, LEAVE]]
    assert costs.canonicalize(asked).tolist() == done
    assert costs.canonicalize(costs.canonicalize(asked)).tolist() == done


@pytest.mark.parametrize("after", [(4,), (-1,), (2, 1), (1, 1)])
def test_exits_that_do_not_exist_are_refused(after):
    with pytest.raises(ConfigError, match="allowed are ascending numbers from 0 to 3"):
        table(after=after)
