"""Output of a training: JSON lines in the run folder, TensorBoard and a progress bar."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from dfs_rl.costs import COMPUTATION
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder

METRICS = "metrics"
"""Format name that excludes a metric, such as a time, from ``metrics.jsonl``."""

Log = Callable[[Mapping[str, object]], None]
"""Function that appends a record to the metrics of a run."""


class MetricsFile(KVWriter):
    """Writes the metrics that an algorithm logs for an update to the run's ``metrics.jsonl``."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Append one record."""
        values = {
            key: float(value)
            for key, value in key_values.items()
            if METRICS not in (key_excluded[key] or ())
        }
        self._log({"kind": "update", "timesteps": step, **values})

    def close(self) -> None:
        """Close nothing, because no file stays open."""


class TensorBoard(TensorBoardOutputFormat):
    """Writer of TensorBoard events that discards earlier ones from ``purge_step`` on."""

    def __init__(self, run: RunFolder, *, purge_step: int | None) -> None:
        # Upstream's constructor cannot purge.
        self.writer = SummaryWriter(str(run.tensorboard_dir), purge_step=purge_step)
        self._is_closed = False

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Add one scalar, or one picture, per entry."""
        self.write(dict(values), dict.fromkeys(values, ()), step)


class ProgressBar:
    """Progress bar with timesteps and metrics of the training and of the last validation.

    If stderr is no terminal, there is a line per validation instead. ``cost`` names the cost model.
    """

    def __init__(self, total: int, *, cost: str = COMPUTATION) -> None:
        self._total, self._cost = total, cost
        self._bar: tqdm[Any] | None = None
        self._validated: dict[str, str] = {}

    def report(self, record: Mapping[str, Any]) -> None:
        """Show the metrics of a validation, for a gate for all budgets estimates."""
        self._validated = {
            "val accuracy": f"{record['accuracy']:.1f} %",
            self._cost: f"{record['computation']:.2f} %",
        }
        if not sys.stderr.isatty():
            several = len(record.get("points", ())) > 1
            over = " over all budgets" if several else ""
            about = "about " if several else ""
            print_status(
                f"step {record['timesteps']:,} of {self._total:,}: "
                f"val accuracy {about}{record['accuracy']:.2f} %, "
                f"{self._cost} {about}{record['computation']:.3f} %; "
                f"reward {record['reward']:.4f} and {record['patterns']} distinct patterns{over}"
            )

    def start(self, timesteps: int) -> None:
        """Show the bar at ``timesteps`` steps if stderr is a terminal."""
        initial = min(timesteps, self._total)
        self._bar = tqdm(
            total=self._total, initial=initial, unit="step", unit_scale=True, disable=None
        )

    def update(self, timesteps: int, **figures: str) -> None:
        """Update the bar and the metrics next to it."""
        if self._bar is not None:
            self._bar.n = min(timesteps, self._total)
            self._bar.set_postfix(figures | self._validated)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
