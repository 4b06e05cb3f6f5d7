"""What a command wrote and said."""

from pathlib import Path

import pytest

from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.utils.run_records import read_record


def read_comparison(folder: Path) -> ComparisonOfRuns:
    """Return the figures of a comparison."""
    return read_record(folder / "comparison.json", ComparisonOfRuns)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on stderr, such as an error."""
    return capsys.readouterr().err.strip().splitlines()[-1]
