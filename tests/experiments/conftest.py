"""Settings of the tests of runs."""

from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]
