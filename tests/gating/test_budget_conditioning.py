"""One gate for all budgets: prices along the dial, and what a budget turns it to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.gating.budget_conditioning import (
    BudgetConditioning,
    BudgetRange,
    CostWeightRange,
    low_discrepancy_preferences,
    preference_grid,
)

RANGES = st.tuples(st.floats(1e-3, 10.0), st.floats(1.01, 1e3)).map(lambda r: (r[0], r[0] * r[1]))


@given(RANGES, st.floats(0.0, 1.0))
def test_a_price_and_its_position_are_each_others_inverse(range_, preference):
    cost_weight_range = CostWeightRange(lowest=range_[0], highest=range_[1])
    weight = float(cost_weight_range.at(torch.tensor([preference], dtype=torch.float64))[0])
    # By hand: equal steps are equal ratios, from the highest price down.
    by_hand = math.exp(
        math.log(range_[1]) + preference * (math.log(range_[0]) - math.log(range_[1]))
    )
    assert weight == pytest.approx(by_hand, rel=1e-9)
    inside = min(
        max(weight, cost_weight_range.lowest), cost_weight_range.highest
    )  # the ends may be rounded across
    assert cost_weight_range.preference(inside) == pytest.approx(preference, abs=1e-6)


@given(
    st.lists(st.floats(0.1, 50.0), min_size=2, max_size=20).map(sorted),
    st.floats(0.05, 80.0),
)
def test_a_budget_is_never_exceeded_where_cost_rises_with_the_position(computations, budget):
    budget_conditioning = BudgetConditioning(computations=tuple(computations))
    if budget < computations[0]:
        with pytest.raises(ConfigError, match="less than this gate can be turned down to"):
            budget_conditioning.preference_for_budget(budget)
        return
    preference = budget_conditioning.preference_for_budget(budget)
    grid = np.linspace(0.0, 1.0, len(computations))
    cost = math.exp(np.interp(preference, grid, np.log(computations)))  # numpy's own interpolation
    assert cost <= budget * (1 + 1e-6)
    if preference < 1.0:  # and no further position is within it
        beyond = math.exp(np.interp(preference + 1e-3, grid, np.log(computations)))
        assert beyond > budget or cost == pytest.approx(beyond)


@given(
    st.lists(st.floats(0.1, 50.0), min_size=2, max_size=20),
    st.floats(0.0, 1.0),
)
def test_what_a_position_costs_is_interpolated_on_the_logarithm(computations, preference):
    grid = np.linspace(0.0, 1.0, len(computations))
    by_numpy = math.exp(np.interp(preference, grid, np.log(computations)))
    budget_conditioning = BudgetConditioning(computations=tuple(computations))
    assert budget_conditioning.computation_at(preference) == pytest.approx(by_numpy, rel=1e-6)


@given(st.data(), st.integers(2, 12), st.floats(0.0, 1.0))
def test_uneven_positions_are_interpolated_between_as_well(data, n, preference):
    costs = st.lists(st.floats(0.1, 50.0), min_size=n, max_size=n).map(sorted)
    computations = data.draw(costs)
    inner = st.floats(0.01, 0.99)
    between = data.draw(st.lists(inner, min_size=n - 2, max_size=n - 2, unique=True))
    preferences = (0.0, *sorted(between), 1.0)
    budget_conditioning = BudgetConditioning(
        computations=tuple(computations), preferences=preferences
    )
    by_numpy = math.exp(np.interp(preference, preferences, np.log(computations)))
    assert budget_conditioning.computation_at(preference) == pytest.approx(by_numpy, rel=1e-6)
    turned = budget_conditioning.preference_for_budget(by_numpy * (1 + 1e-9))
    assert math.exp(np.interp(turned, preferences, np.log(computations))) == pytest.approx(by_numpy)


@pytest.mark.parametrize(
    "preferences",
    [(0.0, 1.0), (0.0, 0.5, 0.5, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 0.9), (0.0, 2.0, 1.0)],
)
def test_positions_go_up_from_0_to_1_one_for_each_figure(preferences):
    with pytest.raises(ConfigError, match=r"the dial's positions are .*; needed are 3, from 0 up"):
        BudgetConditioning(computations=(1.0, 2.0, 3.0), preferences=preferences)


def test_a_budget_above_everything_turns_it_all_the_way():
    assert BudgetConditioning(computations=(0.5, 0.9)).preference_for_budget(7.0) == 1.0


def test_between_two_measured_positions_the_logarithm_is_linear():
    budget_conditioning = BudgetConditioning(computations=(1.0, 4.0, 8.0))
    assert budget_conditioning.preference_for_budget(2.0) == pytest.approx(0.25)
    assert budget_conditioning.preference_for_budget(4.0) == pytest.approx(0.5)


def test_where_the_cheapest_end_is_not_the_cheapest_a_cheap_position_is_found():
    budget_conditioning = BudgetConditioning(computations=(1.2, 1.0, 2.0))
    assert budget_conditioning.budget_range == (1.0, 2.0)
    assert budget_conditioning.preference_for_budget(1.0) == 0.5
    assert budget_conditioning.preference_for_budget(1.1) == pytest.approx(
        0.5 + 0.5 * math.log2(1.1)
    )


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=17))
def test_what_a_gate_can_be_turned_down_to_it_can_be_turned_to(computations):
    budget_conditioning = BudgetConditioning(computations=tuple(computations))
    least = budget_conditioning.budget_range[0]
    last = max(i for i, cost in enumerate(computations) if cost == least)
    assert budget_conditioning.preference_for_budget(least) == pytest.approx(
        last / (len(computations) - 1)
    )


def test_budgets_are_spaced_by_equal_ratios():
    budgets = BudgetRange(lowest=0.5, highest=8.0).at(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(budgets, torch.tensor([0.5, 1.0, 2.0, 8.0]))


@pytest.mark.parametrize("kind", [CostWeightRange, BudgetRange])
@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (10.0, 10.0), (1.0, math.inf)])
def test_impossible_ranges_are_refused(kind, lowest, highest):
    with pytest.raises(ConfigError, match=rf"run from {lowest:g}( %)? to {highest:g}"):
        kind(lowest=lowest, highest=highest)


@pytest.mark.parametrize("computations", [(1.0,), (1.0, -1.0), (math.nan, 1.0)])
def test_impossible_measurements_are_refused(computations):
    with pytest.raises(ConfigError, match="the dial's computations are"):
        BudgetConditioning(computations=computations)


def test_prices_out_of_range_and_costs_never_measured_are_refused():
    with pytest.raises(ConfigError, match=r"cost weight 11 is not among .*, 1 to 10"):
        CostWeightRange(lowest=1.0, highest=10.0).preference(11.0)
    with pytest.raises(ConfigError, match="was not measured"):
        BudgetConditioning().preference_for_budget(1.0)


@pytest.mark.parametrize("n", [64, 500])
def test_images_are_spread_evenly_in_whatever_order_they_come(n):
    preferences = low_discrepancy_preferences(n).numpy()
    # Every stretch of the dial has its share of the images, and so has every stretch within any half of them.
    for part in (preferences, preferences[: n // 2], preferences[n // 2 :], preferences[::2]):
        counts = np.histogram(part, bins=8, range=(0.0, 1.0))[0]
        assert abs(counts - len(part) / 8).max() <= 2


def test_the_measured_positions_reach_both_ends():
    assert preference_grid(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
