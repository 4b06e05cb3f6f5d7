"""Curve of a gate from one pass in which every image has its own preference."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.evaluation.budget_conditioning import estimate_curve_points


def test_rising_segments_are_plain_means():
    preferences = torch.tensor([0.0, 0.1, 0.3, 0.3, 0.9, 1.0])
    computation = torch.tensor([1.0, 3.0, 4.0, 6.0, 10.0, 20.0])
    correct = torch.tensor([False, False, True, False, True, True])
    assert estimate_curve_points(computation, correct, preferences) == [(2, 0), (5, 50), (15, 100)]


def test_falling_segments_are_pooled():
    preferences = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.99, 0.99])
    computation = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    correct = torch.tensor([True, False, False, False, True, True])
    # 50 % before 0 %: both are 25 %, the mean of their four images.
    assert estimate_curve_points(computation, correct, preferences) == [(1, 25), (2, 25), (3, 100)]


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 20)), min_size=8, max_size=8))
def test_pooling_keeps_the_mean_accuracy(segments):
    preferences = (torch.arange(160) + 0.5) / 160
    computation = torch.tensor([cost for cost, _ in segments]).repeat_interleave(20)
    correct = torch.cat([torch.arange(20) < right for _, right in segments])
    points = estimate_curve_points(computation, correct, preferences)
    accuracies = [point.accuracy for point in points]
    assert accuracies == sorted(accuracies)
    mean = sum(accuracies) / len(accuracies)
    assert abs(mean - 100 * correct.double().mean()) < 1e-6


def test_constant_cost_is_one_point():
    preferences = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    correct = torch.tensor([True, False, True, False, False, True])
    points = estimate_curve_points(torch.full((6,), 0.7), correct, preferences)
    assert [accuracy for _, accuracy in points] == [50.0] * 6
