"""The fit finds the times that made up runs, whatever interrupts some of them."""

import numpy as np
import pytest

from dfs_rl.runtime.latency_fit import fit_costs, split_time, weighted_median

OPTIONS = 4


@pytest.fixture
def runs():
    """Runs of a network of six layers, with the times of its options."""
    generator = np.random.default_rng(0)
    options = generator.integers(OPTIONS, size=(400, 6))
    costs = generator.uniform(0.5, 2.0, size=(6, OPTIONS))
    return generator, options, costs, 3.0 + costs[np.arange(6), options].sum(axis=1)


def test_exact_runs_give_exact_times(runs):
    _, options, costs, times = runs
    fit = fit_costs(options, times, OPTIONS)
    assert fit.base == pytest.approx(3.0 + costs[:, 0].sum(), rel=5e-3)
    np.testing.assert_allclose(fit.extra, costs - costs[:, :1], atol=5e-3)
    np.testing.assert_array_less(np.abs(fit.residuals), 5e-3)


def test_interrupted_runs_do_not_matter(runs):
    generator, options, _, times = runs
    noisy = times * (1 + 0.01 * generator.standard_normal(len(times)))
    noisy[generator.random(len(times)) < 0.2] *= 5
    fit = fit_costs(options, noisy, OPTIONS)
    predicted = fit.base + fit.extra[np.arange(6), options].sum(axis=1)
    assert np.abs(predicted / times - 1).mean() < 0.02


def test_weighted_median():
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_median(values, np.ones(3)) == 2.0
    assert weighted_median(values, np.array([5.0, 1.0, 1.0])) == 3.0
    assert weighted_median(values, np.array([1.0, 1.0, 2.0])) == 2.0


@pytest.mark.parametrize(
    ("total", "expected"), [(10.0, [3.0, 2.0, 5.0]), (3.5, [1.0, 0.5, 2.0]), (7.0, [2.0, 1.5, 3.5])]
)
def test_split_adds_up(total, expected):
    parts = split_time(total, np.array([2.0, 1.0, 4.0]))
    np.testing.assert_allclose(parts.sum(), total)
    if total >= 7.0:
        np.testing.assert_allclose(parts, np.array([2.0, 1.0, 4.0]) + (total - 7.0) / 3)
    else:
        np.testing.assert_allclose(parts, [1.0, 0.5, 2.0])
