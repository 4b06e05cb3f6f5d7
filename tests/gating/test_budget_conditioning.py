"""Budget conditioning: cost weights, budgets and measured costs of preferences."""

import math
import re

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

ranges = st.tuples(st.floats(1e-3, 10.0), st.floats(1.01, 1e3)).map(lambda r: (r[0], r[0] * r[1]))
costs = st.floats(0.1, 50.0)
rising_costs = st.lists(costs, min_size=2, max_size=20).map(sorted)


def conditioning(*computations, **settings):
    return BudgetConditioning(computations=computations, **settings)


# Cost weights and budgets of preferences


@given(ranges, st.floats(0.0, 1.0))
def test_cost_weight_and_preference_are_inverse(range_, preference):
    cost_weights = CostWeightRange(lowest=range_[0], highest=range_[1])
    weight = float(cost_weights.at(torch.tensor([preference], dtype=torch.float64))[0])
    low, high = map(math.log, range_)  # equal steps are equal ratios, from the highest down
    assert weight == pytest.approx(math.exp(high + preference * (low - high)), rel=1e-9)
    inside = min(max(weight, range_[0]), range_[1])  # despite rounding
    assert cost_weights.preference(inside) == pytest.approx(preference, abs=1e-6)


def test_budgets_have_equal_ratios():
    budgets = BudgetRange(lowest=0.5, highest=8.0).at(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(budgets, torch.tensor([0.5, 1.0, 2.0, 8.0]))


@pytest.mark.parametrize("kind", [CostWeightRange, BudgetRange])
@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (10.0, 10.0), (1.0, math.inf)])
def test_bad_range(kind, lowest, highest):
    with pytest.raises(ConfigError, match=rf"run from {lowest:g}( %)? to {highest:g}"):
        kind(lowest=lowest, highest=highest)


@pytest.mark.parametrize("n", [64, 500])
def test_preferences_are_evenly_spread_in_any_part(n):
    preferences = low_discrepancy_preferences(n).numpy()
    for part in (preferences, preferences[: n // 2], preferences[n // 2 :], preferences[::2]):
        counts = np.histogram(part, bins=8, range=(0.0, 1.0))[0]
        assert abs(counts - len(part) / 8).max() <= 2


# Measured costs


@given(rising_costs, st.floats(0.05, 80.0))
def test_budget_is_never_exceeded(computations, budget):
    conditioned = conditioning(*computations)
    if budget < computations[0]:
        with pytest.raises(ConfigError, match="give a budget in this range"):
            conditioned.preference_for_budget(budget)
        return
    preference = conditioned.preference_for_budget(budget)
    grid, logs = np.linspace(0.0, 1.0, len(computations)), np.log(computations)
    cost = math.exp(np.interp(preference, grid, logs))
    assert cost <= budget * (1 + 1e-6)
    if preference < 1.0:  # no higher preference is within it
        beyond = math.exp(np.interp(preference + 1e-3, grid, logs))
        assert beyond > budget or cost == pytest.approx(beyond)


@given(st.data(), st.integers(2, 12), st.floats(0.0, 1.0))
def test_costs_are_interpolated_on_the_logarithm(data, n, preference):
    computations = data.draw(st.lists(costs, min_size=n, max_size=n).map(sorted))
    inner = data.draw(st.lists(st.floats(0.01, 0.99), min_size=n - 2, max_size=n - 2, unique=True))
    preferences = (0.0, *sorted(inner), 1.0)
    conditioned = conditioning(*computations, preferences=preferences)
    expected = math.exp(np.interp(preference, preferences, np.log(computations)))
    assert conditioned.computation_at(preference) == pytest.approx(expected, rel=1e-6)
    again = conditioned.preference_for_budget(expected * (1 + 1e-9))
    cost = math.exp(np.interp(again, preferences, np.log(computations)))
    assert cost == pytest.approx(expected)


@pytest.mark.parametrize(
    ("computations", "budget", "preference"),
    [
        ((0.5, 0.9), 7.0, 1.0),
        ((1.0, 4.0, 8.0), 2.0, 0.25),
        ((1.0, 4.0, 8.0), 4.0, 0.5),
        ((1.2, 1.0, 2.0), 1.0, 0.5),  # the cheapest preference is in the middle
        ((1.2, 1.0, 2.0), 1.1, 0.5 + 0.5 * math.log2(1.1)),
    ],
)
def test_preference_for_budget(computations, budget, preference):
    assert conditioning(*computations).preference_for_budget(budget) == pytest.approx(preference)


def test_budgets_above_the_range_are_refused():
    conditioned = conditioning(0.50001, 6.37401)
    assert conditioned.rounded_range == (0.5001, 6.3741)
    for budget in (0.3, 0.5001, 6.3741):
        conditioned.check_not_above(budget)
    with pytest.raises(ConfigError, match=r"budget is 6\.3742 %.* 0\.5001 % to 6\.3741 %"):
        conditioned.check_not_above(6.3742)


def test_printed_bounds_are_allowed():
    measured = BudgetConditioning(
        computations=(0.81234543, 5.0),
        accuracies=(50.0, 100.0),
        full_precision_accuracy=100.23148148,
    )
    for query in (measured.preference_for_budget, measured.preference_for_accuracy_drop):
        with pytest.raises(ConfigError) as raised:
            query(0.1)
        bound = re.findall(r"\d+\.\d+", str(raised.value))[1]
        assert 0.0 <= query(float(bound)) <= 1.0


def test_no_preference_inside_a_jump_of_the_cost():
    preferences = (0.0, 0.5, 0.5 + 2.0**-13, 1.0)
    conditioned = conditioning(1.0, 2.0, 4.0, 8.0, preferences=preferences)
    assert [conditioned.preference_for_budget(b) for b in (3.0, 4.0)] == [0.5, preferences[2]]


def test_default_preferences_are_evenly_spaced():
    assert preference_grid(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert conditioning(1.0, 2.0, 3.0).preferences == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    "preferences",
    [(0.0, 1.0), (0.0, 0.5, 0.5, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 0.9), (0.0, 2.0, 1.0)],
)
def test_bad_preferences(preferences):
    with pytest.raises(ConfigError, match=r"preferences are .*; needed are 3, increasing"):
        conditioning(1.0, 2.0, 3.0, preferences=preferences)


ACCURATE = {"accuracies": (90.0, 96.0, 95.5, 96.5), "full_precision_accuracy": 97.0}


@pytest.mark.parametrize(
    ("drop", "index"), [(0.5, 3), (0.75, 3), (1.0, 1), (1.5, 2), (6.9, 2), (7.0, 0), (100.0, 0)]
)
def test_the_cheapest_point_within_an_accuracy_drop(drop, index):
    measured = conditioning(1.0, 4.0, 2.0, 8.0, **ACCURATE)
    assert measured.preference_for_accuracy_drop(drop) == measured.preferences[index]


def test_an_accuracy_drop_that_no_point_holds():
    measured = conditioning(1.0, 4.0, 2.0, 8.0, **ACCURATE)
    with pytest.raises(ConfigError, match=r"drop is 0\.4, but the smallest drop .* is 0\.5 points"):
        measured.preference_for_accuracy_drop(0.4)
    better = conditioning(1.0, 2.0, accuracies=(96.0, 98.0), full_precision_accuracy=97.0)
    assert better.smallest_accuracy_drop == -1.0
    assert better.preference_for_accuracy_drop(0.0) == 1.0
    with pytest.raises(ConfigError, match="accuracies of this gate were not measured"):
        conditioning(1.0, 2.0).preference_for_accuracy_drop(1.0)


@pytest.mark.parametrize(
    "accuracies",
    [
        {"accuracies": (1.0, 2.0)},
        {"full_precision_accuracy": 1.0},
        {"accuracies": (1.0, 2.0, 3.0), "full_precision_accuracy": 1.0},
    ],
)
def test_accuracies_belong_to_computations(accuracies):
    with pytest.raises(ConfigError, match="full_precision_accuracy is"):
        conditioning(1.0, 2.0, **accuracies)
    with pytest.raises(ConfigError, match="full_precision_accuracy is"):
        conditioning(**accuracies)


@pytest.mark.parametrize("computations", [(1.0,), (1.0, -1.0), (math.nan, 1.0)])
def test_bad_computations(computations):
    with pytest.raises(ConfigError, match="computations"):
        conditioning(*computations)


def test_bad_queries():
    with pytest.raises(ConfigError, match=r"cost_weight is 11; allowed are .*, 1 to 10"):
        CostWeightRange(lowest=1.0, highest=10.0).preference(11.0)
    with pytest.raises(ConfigError, match="not measured"):
        BudgetConditioning().preference_for_budget(1.0)
