import math

import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.metrics import (
    accuracy_error,
    accuracy_percent,
    class_accuracy,
    paired_difference,
)
from tests.helpers.fake_runs import mcnemar


def test_accuracies_by_hand():
    assert accuracy_percent(torch.tensor([True, False, True, True])) == 75.0
    assert accuracy_error(90.0, 100) == pytest.approx(3.0)  # sqrt(.9 * .1 / 100) = .03
    assert accuracy_error(100.0, 100) == 0.0
    labels = torch.tensor([0, 0, 2, 2, 2, 3])
    correct = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 1.0])
    assert class_accuracy(correct, labels, 5) == (50.0, None, 50.0, 100.0, None)


def difference(won, lost, equal):
    first = torch.tensor([1] * won + [0] * lost + [1] * equal)
    second = torch.tensor([0] * won + [1] * lost + [1] * equal)
    return paired_difference(first, second)


def test_difference_and_interval_in_closed_form():
    result = difference(30, 10, 60)
    # Bonett and Price (2012): 31 and 11 of 102.
    mean, error = 20 / 102, math.sqrt((42 / 102 - (20 / 102) ** 2) / 102)
    bounds = [100 * (mean + sign * 1.95996 * error) for sign in (-1, 1)]
    assert result == pytest.approx((20.0, *bounds), abs=1e-3)


def test_equal_outcomes_are_a_tie():
    result = difference(0, 0, 50)
    assert result.difference == 0.0
    assert result.low < 0 < result.high
    assert result.low == pytest.approx(-result.high)


@pytest.mark.parametrize("lost", [0, 1, 3, 10, 40])
def test_interval_agrees_with_mcnemar(lost):
    def is_better(won):
        return difference(won, lost, 1000).low > 0

    expected = next(won for won in range(lost, 500) if mcnemar(won, lost) < 0.05)
    found = next(won for won in range(lost, 500) if is_better(won))
    assert abs(expected - found) <= 2
    assert is_better(expected + 20)


def test_interval_covers_the_truth():
    generator = torch.Generator().manual_seed(0)
    n, trials, hits = 400, 1000, 0
    for draws in torch.rand(trials, n, generator=generator):
        # Won with 6 %, lost with 3 %: the truth is 3 points.
        first, second = (draws < 0.06), ((draws >= 0.06) & (draws < 0.09))
        result = paired_difference(first, second)
        hits += result.low <= 3.0 <= result.high
    # Standard error of the coverage is 0.7 %.
    assert 0.93 < hits / trials < 0.97


def test_unpaired_images_are_refused():
    with pytest.raises(ConfigError, match="results of 3 and 2 images"):
        paired_difference(torch.ones(3), torch.ones(2))
