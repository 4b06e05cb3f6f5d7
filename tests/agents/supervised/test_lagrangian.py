"""Lagrange multipliers against closed forms and against single multipliers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.agents.supervised.lagrangian import LagrangeMultipliers
from dfs_rl.errors import CheckpointError


def test_interpolation_is_geometric():
    multipliers = LagrangeMultipliers(3, 1.0, rate=0.1)
    multipliers.restore([1.0, 4.0, 64.0])
    found = multipliers.at(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == pytest.approx([1.0, 2.0, 4.0, 16.0, 64.0])


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=6), st.floats(0.01, 1.0))
def test_images_at_a_knot_move_it_alone(spent, rate):
    relative = torch.tensor(spent, dtype=torch.float64)
    multipliers = LagrangeMultipliers(5, 0.1, rate)
    multipliers.update(torch.full((len(spent),), 0.75), relative)
    over = max(-1.0, min(sum(spent) / len(spent) - 1.0, 1.0))
    expected = 0.1 * math.exp(rate * over)
    assert multipliers.values.tolist() == pytest.approx([0.1, 0.1, 0.1, expected, 0.1])
    single = LagrangeMultipliers(1, 0.1, rate)
    single.update(torch.rand(len(spent)), relative)
    assert single.values.tolist() == pytest.approx([expected])


def test_images_between_two_knots_move_both():
    multipliers = LagrangeMultipliers(2, 1.0, rate=0.1)
    multipliers.update(torch.tensor([0.25, 0.25]), torch.tensor([1.5, 1.5]))
    assert multipliers.values.tolist() == pytest.approx([math.exp(0.05)] * 2)


def test_multipliers_stay_within_bounds():
    multipliers = LagrangeMultipliers(2, 1.0, rate=1.0)
    for _ in range(100):
        multipliers.update(torch.tensor([0.0, 1.0]), torch.tensor([9.0, 0.0]))
    assert multipliers.values.tolist() == pytest.approx([1e6, 1e-6])


def test_another_number_of_multipliers_is_refused():
    with pytest.raises(CheckpointError, match="has 1 Lagrange multipliers, but this run has 9"):
        LagrangeMultipliers(9, 1.0, rate=0.1).restore([0.3])
