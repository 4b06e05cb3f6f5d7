import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.curves import (
    CurvePoint,
    accuracy_at,
    hypervolume,
    hypervolume_reference_point,
    pareto_front,
)

REFERENCE_POINT = CurvePoint(10.0, 50.0)
POINTS = st.lists(
    st.builds(CurvePoint, st.floats(0.01, 20.0), st.floats(0.0, 100.0)), min_size=1, max_size=8
)


def test_hypervolume_of_two_points():
    points = [CurvePoint(0.1, 60.0), CurvePoint(1.0, 80.0)]
    # A decade at 10 points above the worst, then one at 30.
    assert hypervolume(points, reference_point=REFERENCE_POINT) == pytest.approx(10.0 + 30.0)
    beyond = [CurvePoint(10.0, 90.0), CurvePoint(1.0, 40.0)]
    for useless in ([], beyond):
        assert hypervolume(useless, reference_point=REFERENCE_POINT) == 0.0


@given(POINTS)
def test_hypervolume_equals_a_sum_over_cells(points):
    cells = 4000
    width = math.log10(REFERENCE_POINT.computation / 0.01) / cells
    costs = 0.01 * 10 ** (width * (np.arange(cells) + 0.5))
    best = np.max([np.where(costs >= p.computation, p.accuracy, 0.0) for p in points], axis=0)
    area = width * np.clip(best - REFERENCE_POINT.accuracy, 0.0, None).sum()
    # Each point of the front may lie anywhere within a cell.
    assert hypervolume(points, reference_point=REFERENCE_POINT) == pytest.approx(
        area, abs=len(points) * 50 * width
    )


@given(POINTS)
def test_pareto_front_rises_and_covers_every_point(points):
    front = pareto_front(points)
    assert all(a.computation < b.computation for a, b in itertools.pairwise(front))
    assert all(a.accuracy < b.accuracy for a, b in itertools.pairwise(front))
    for point in points:
        assert any(
            s.computation <= point.computation and s.accuracy >= point.accuracy for s in front
        )


SKIPPED = CurvePoint(0.1, 10.0)
LOW = [CurvePoint(0.5, 80.0), CurvePoint(6.4, 90.0), CurvePoint(100.1, 91.0)]
HIGH = [CurvePoint(6.4, 90.5), CurvePoint(25.1, 90.0), CurvePoint(100.1, 91.0)]


@pytest.mark.parametrize("gates", [[1.0], [0.9, 20.0], [9.9, 50.0, 70.0]])
def test_reference_point_of_low_bit_options(gates):
    points = [CurvePoint(cost, 90.0) for cost in gates]
    assert hypervolume_reference_point(LOW, [SKIPPED], points) == (10.0, 80.0)
    assert hypervolume_reference_point(LOW, [], points) == (10.0, 80.0)


def test_reference_point_of_expensive_options_or_gates():
    spent = [CurvePoint(cost, 90.0) for cost in (20.0, 50.0)]
    assert hypervolume_reference_point(HIGH, [SKIPPED], spent) == (100.1, 10.0)
    assert hypervolume_reference_point(HIGH, [SKIPPED], [CurvePoint(7.0, 90.0), *spent]) == (
        100.1,
        10.0,
    )
    assert hypervolume_reference_point(HIGH, [], spent) == (100.1, 90.0)
    assert hypervolume_reference_point(LOW, [SKIPPED], spent) == (100.1, 10.0)
    # The hypervolumes of both gates are above zero.
    reference_point = hypervolume_reference_point(HIGH, [SKIPPED], spent)
    cheap, expensive = (hypervolume([point], reference_point=reference_point) for point in spent)
    assert cheap == pytest.approx(80.0 * math.log10(100.1 / 20.0))
    assert expensive == pytest.approx(80.0 * math.log10(100.1 / 50.0))


def test_interpolation_is_linear_over_the_logarithm():
    points = [CurvePoint(0.1, 60.0), CurvePoint(10.0, 80.0), CurvePoint(1.0, 55.0)]
    assert accuracy_at(points, 1.0) == pytest.approx(70.0)  # not on the front
    assert accuracy_at(points, 0.1) == 60.0
    assert accuracy_at(points, 10.0) == 80.0
    assert accuracy_at(points, 0.09) is None
    assert accuracy_at(points, 11.0) is None
    falling = [CurvePoint(0.5, 80.0), CurvePoint(1.0, 85.0), CurvePoint(3.0, 84.9)]
    assert [accuracy_at(falling, c) for c in (1.0, 2.0, 3.0, 3.1)] == [85.0, 85.0, 85.0, None]
    assert accuracy_at([], 1.0) is None


@given(POINTS, st.floats(0.01, 20.0))
def test_interpolation_stays_between_its_neighbours(points, computation):
    value = accuracy_at(points, computation)
    assume(value is not None)
    front = pareto_front(points)
    below = max(s.accuracy for s in front if s.computation <= computation)
    # Beyond the front, the last accuracy applies up to the most expensive point.
    above = min((s.accuracy for s in front if s.computation >= computation), default=below)
    assert below - 1e-9 <= value <= above + 1e-9
    assert computation <= max(p.computation for p in points)


def test_a_logarithm_needs_positive_costs():
    with pytest.raises(ConfigError, match=r"computation is 0\.0"):
        hypervolume([CurvePoint(0.0, 1.0)], reference_point=REFERENCE_POINT)
