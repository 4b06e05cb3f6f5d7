"""Settings of the tests of runs."""

from tests.helpers.quick import few_steps, quick_runs

__all__ = ["few_steps", "quick_runs"]
