"""Number formats of reports."""

import pytest

from dfs_rl.evaluation.comparison_records import Spread
from dfs_rl.evaluation.number_format import duration_text, number_text, setting_text, spread_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (85.2345, "85.23"),
        (2.8, "2.800"),
        (12345.6, "12,346"),
        (99.996, "100.0"),
        (0.00123456, "0.001235"),
        (3.2e-7, "3.2e-07"),
        (-1.5, "-1.500"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (85.2345, 0.3123, "85.23 ± 0.31"),
        (2.5, None, "2.500"),
        (0.1, 12.3, "0 ± 12"),
        (1234.5, 100.4, "1,234 ± 100"),
        (2.0, 1e-17, "2.000 ± 0"),
    ],
)
def test_means_have_the_digits_of_their_deviation(mean, deviation, text):
    assert spread_text(Spread(mean=mean, deviation=deviation)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (0.000123456, "0.0001235"),
        ("relu", "relu"),
        ((64, (1.5, None)), "[64, [1.5, null]]"),
        ((), "[]"),
    ],
)
def test_settings_are_written_as_in_yaml(value, text):
    assert setting_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(30.0, "30 seconds"), (90.0, "1.5 minutes"), (7200.0, "2.0 hours")]
)
def test_durations_have_a_fitting_unit(seconds, text):
    assert duration_text(seconds) == text
