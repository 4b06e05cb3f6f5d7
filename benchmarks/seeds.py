"""Figures over seeds: the gate of several finished runs, and what it gains over each rival, as mean and deviation.

    python -m dfs_rl.train_agent --seed 0 --run-dir runs/s0    # and 1, 2, ...
    python -m benchmarks.seeds runs/s0 runs/s1 runs/s2

A rival is chosen anew for each run, on the val split at that run's computation, so both members of a difference come from one run.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro

from dfs_rl.config import config_from_dict
from dfs_rl.evaluation.summary import EvaluationSummary, MethodSummary
from dfs_rl.runs import read_json

GATE = "gate"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to read.

    Attributes:
        runs: Run folders of train_agent, one for each seed.
        summary: Which summary to read from each.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    summary: str = "summary.json"


def spread(values: list[float]) -> str:
    """Return mean and standard deviation as text; a single value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def read(run: Path, name: str) -> dict[str, MethodSummary]:
    """Return the methods of one run's summary by key."""
    path = run / name
    record = read_json(path)
    assert isinstance(record, dict), f"{path} is not a summary"
    summary = config_from_dict(record, EvaluationSummary, str(path))
    return {method.key: method for method in summary.methods}


def main(settings: Settings) -> None:
    """Print the table."""
    tables = [read(run, settings.summary) for run in settings.runs]
    print(f"{len(tables)} runs, {tables[0][GATE].n} images; mean ± standard deviation over runs\n")
    print(
        f"{'method':<26}{'accuracy %':>16}{'computation %':>18}{'patterns':>16}{'gate minus method':>20}"
    )
    for key, first in tables[0].items():
        methods = [table[key] for table in tables]
        gains = [table[GATE].accuracy - table[key].accuracy for table in tables]
        cells = (
            spread([m.accuracy for m in methods]),
            spread([m.computation for m in methods]),
            spread([float(m.patterns) for m in methods]),
            "" if key == GATE else spread(gains),
        )
        print(f"{first.label:<26}{cells[0]:>16}{cells[1]:>18}{cells[2]:>16}{cells[3]:>20}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
