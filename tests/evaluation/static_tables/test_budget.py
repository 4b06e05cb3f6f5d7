import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.costs import ALLOWED_BITS, BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.evaluation.static_tables.budget import (
    cheapest_static_table,
    fit_to_budget,
    fit_to_budget_haq,
    is_within_budget,
    static_table_computation,
)

MENUS = st.sets(st.sampled_from(ALLOWED_BITS), min_size=1).map(lambda bits: tuple(sorted(bits)))


@st.composite
def problems(draw):
    """A cost table, a table of options and a budget that at least the cheapest table keeps to."""
    menu = BitOptions(draw(MENUS))
    macs = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
    stem = FixedCost(name="stem", macs=draw(st.integers(0, 10**5)), bits=8)
    costs = CostTable(options=menu, layer_macs=tuple(macs), fixed=(stem,))
    table = tuple(draw(st.integers(0, menu.full)) for _ in macs)
    cheapest = static_table_computation(costs, (0,) * len(macs))
    dearest = static_table_computation(costs, (menu.full,) * len(macs))
    budget = cheapest + draw(st.floats(0, 1.2)) * (dearest - cheapest)
    return costs, table, budget


def percent(costs, table):
    """The closed form, in whole numbers but for the last division."""
    spent = sum(m * costs.options[o] ** 2 for m, o in zip(costs.layer_macs, table, strict=True))
    fixed = sum(part.macs * part.bits**2 for part in costs.fixed)
    return 100 * (spent + fixed) / (32**2 * sum(costs.layer_macs))


@given(problems())
def test_a_table_costs_what_the_closed_form_says(problem):
    costs, table, _ = problem
    assert static_table_computation(costs, table) == pytest.approx(percent(costs, table))


@pytest.mark.parametrize("lower", [fit_to_budget_haq, fit_to_budget])
@given(problem=problems())
def test_lowered_tables_fit_and_are_nowhere_higher(lower, problem):
    costs, table, budget = problem
    lowered = lower(table, costs, budget)
    assert percent(costs, lowered) <= budget + 1e-6
    assert all(0 <= low <= high for low, high in zip(lowered, table, strict=True))
    assert lower(lowered, costs, budget) == lowered
    if is_within_budget(costs, table, budget):
        assert lowered == table


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=4),
    st.sampled_from([(0, 2, 32), (2, 4), (8,)]),
    st.dictionaries(st.integers(1, 3), st.integers(0, 3000), min_size=1),
    st.integers(0, 3000),
    st.floats(0, 1),
)
def test_no_table_is_cheaper_than_the_cheapest_one_also_with_exits(macs, menu, exits, last, share):
    costs = CostTable(
        options=BitOptions(menu),
        layer_macs=tuple(macs),
        fixed=(FixedCost(name="mandatory", macs=last, bits=8, layer=len(macs) - 1),),
        exits=tuple(
            ExitCost(after=after, macs=paid, bits=8)
            for after, paid in sorted(exits.items())
            if after < len(macs)
        ),
    )
    tables = list(itertools.product(range(costs.n_actions), repeat=len(macs)))
    every = costs.computation(costs.canonicalize(torch.tensor(tables)))
    cheapest = static_table_computation(costs, cheapest_static_table(costs))
    assert cheapest == pytest.approx(float(every.min()))
    budget = cheapest + share * (float(every.max()) - cheapest)
    for table in tables[:: max(1, len(tables) // 20)]:
        assert is_within_budget(costs, fit_to_budget(table, costs, budget), budget)


@given(problems())
def test_last_layers_are_lowered_first_one_option_a_round(problem):
    costs, table, budget = problem
    lowered = fit_to_budget_haq(table, costs, budget)
    # HAQ's loop: rounds from the last layer to the first, broken off as soon as the table fits.
    expected = list(table)
    while not is_within_budget(costs, tuple(expected), budget):
        for i in range(len(expected)):
            if expected[-(i + 1)] > 0:
                expected[-(i + 1)] -= 1
            if is_within_budget(costs, tuple(expected), budget):
                break
    assert lowered == tuple(expected)


def test_an_example_by_hand():
    costs = CostTable(options=BitOptions((0, 16, 32)), layer_macs=(100, 100, 100))
    assert [static_table_computation(costs, (o,) * 3) for o in range(3)] == [0.0, 25.0, 100.0]
    assert fit_to_budget_haq((2, 2, 2), costs, 75.0) == (2, 2, 1)
    assert fit_to_budget_haq((2, 2, 2), costs, 25.0) == (1, 1, 1)
    assert fit_to_budget_haq((2, 2, 2), costs, 17.0) == (1, 1, 0)
    assert fit_to_budget_haq((2, 0, 0), costs, 17.0) == (1, 0, 0)
    assert fit_to_budget((1, 2, 1), costs, 25.0) == (1, 1, 1)


def test_a_table_at_the_cap_fits():
    costs = CostTable(options=BitOptions((0, 3)), layer_macs=(7, 11, 13))
    exact = float(costs.computation(torch.tensor([[1, 1, 1]])))
    assert is_within_budget(costs, (1, 1, 1), exact)
    assert not is_within_budget(costs, (1, 1, 1), exact - 1e-6)
