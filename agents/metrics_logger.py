"""Writers of a training's figures: JSON lines in the run folder, and TensorBoard."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger
from torch.utils.tensorboard.writer import SummaryWriter

from dfs_rl.utils.run_folder import RunFolder

METRICS = "metrics"
"""Format name that excludes a figure from ``metrics.jsonl``: times, which no second run repeats."""

Log = Callable[[Mapping[str, object]], None]
"""Appends a record to the metrics of a run."""


class MetricsFile(KVWriter):
    """Writes the figures that an algorithm logs for an update to the run's ``metrics.jsonl``.

    Args:
        log: Appends a record, see ``RunFolder.log``.
    """

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
        """Nothing is held open."""


class TensorBoard(KVWriter):
    """Writes TensorBoard events; unlike Stable-Baselines3's own writer it can forget what a resumed run repeats.

    Args:
        run: The run folder.
        purge_step: Forget earlier events from this step on; ``None`` for a new run.
    """

    def __init__(self, run: RunFolder, *, purge_step: int | None) -> None:
        self._events = SummaryWriter(str(run.tensorboard_dir), purge_step=purge_step)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Add one scalar per figure."""
        del key_excluded
        self.scalars(key_values, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one scalar per entry."""
        for key, value in values.items():
            self._events.add_scalar(key, float(value), step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture, uint8 ``[height, width, 3]``."""
        self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything to the disk."""
        self._events.close()


def make_logger(log: Log, board: TensorBoard) -> Logger:
    """Return an algorithm's logger, which writes to the metrics by ``log`` and to TensorBoard."""
    return Logger(folder=None, output_formats=[MetricsFile(log), board])
