import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.metrics import (
    accuracy_error,
    accuracy_percent,
    class_accuracy,
    distinct_patterns,
    option_histogram,
    paired_difference,
)


def test_accuracy_counts_right_answers():
    assert accuracy_percent(torch.tensor([True, False, True, True])) == 75.0


def test_accuracy_error_is_the_binomial_one():
    # sqrt(.9 * .1 / 100) = .03
    assert accuracy_error(90.0, 100) == pytest.approx(3.0)
    assert accuracy_error(100.0, 100) == 0.0


def test_class_accuracy_against_a_loop_and_none_for_an_absent_class():
    labels = torch.tensor([0, 0, 2, 2, 2, 3])
    correct = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 1.0])
    assert class_accuracy(correct, labels, 5) == (50.0, None, 50.0, 100.0, None)


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=30))
def test_patterns_and_histogram_against_loops(rows):
    options = torch.tensor(rows)
    assert distinct_patterns(options) == len({tuple(row) for row in rows})
    histogram = option_histogram(options, 4)
    assert histogram.shape == (3, 4)
    for layer in range(3):
        for option in range(4):
            share = sum(row[layer] == option for row in rows) / len(rows)
            assert histogram[layer, option].item() == pytest.approx(share)


def outcomes(won, lost, level):
    first = torch.tensor([1] * won + [0] * lost + [1] * level)
    second = torch.tensor([0] * won + [1] * lost + [1] * level)
    return paired_difference(first, second)


def mcnemar(won, lost):
    """Two-sided p-value of McNemar's exact test."""
    n, k = won + lost, max(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)


def test_difference_is_in_points_and_inside_its_interval():
    result = outcomes(30, 10, 60)
    assert result.difference == pytest.approx(20.0)
    assert result.low < 20.0 < result.high
    # Bonett and Price (2012): 31 and 11 of 102.
    mean, spread = 20 / 102, math.sqrt((42 / 102 - (20 / 102) ** 2) / 102)
    assert result.low == pytest.approx(100 * (mean - 1.95996 * spread), abs=1e-3)
    assert result.high == pytest.approx(100 * (mean + 1.95996 * spread), abs=1e-3)


def test_equal_outcomes_prove_nothing():
    result = outcomes(0, 0, 50)
    assert result.difference == 0.0
    assert result.low < 0 < result.high
    assert result.low == pytest.approx(-result.high)


@pytest.mark.parametrize("lost", [0, 1, 3, 10, 40])
def test_interval_decides_as_mcnemar_does_or_next_to_it(lost):
    def proves(won):
        return outcomes(won, lost, 1000).low > 0

    needed = next(won for won in range(lost, 500) if mcnemar(won, lost) < 0.05)
    asked = next(won for won in range(lost, 500) if proves(won))
    assert abs(needed - asked) <= 2
    assert proves(needed + 20)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    n, trials, hit = 400, 1000, 0
    for draws in torch.rand(trials, n, generator=generator):
        # Won with 6 %, lost with 3 %: the truth is 3 points.
        first, second = (draws < 0.06), ((draws >= 0.06) & (draws < 0.09))
        result = paired_difference(first, second)
        hit += result.low <= 3.0 <= result.high
    # Standard error of the coverage is 0.7 %.
    assert 0.93 < hit / trials < 0.97


def test_unpaired_images_are_refused():
    with pytest.raises(ConfigError, match="3 images with 2"):
        paired_difference(torch.ones(3), torch.ones(2))
