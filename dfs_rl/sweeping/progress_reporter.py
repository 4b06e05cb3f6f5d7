"""Progress table of a running sweep.

Each trial gets a line when it ends; the running trials get one at intervals.
"""

import time
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial

from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.trial import FAILED, FULL_PROGRESS, PROGRESS
from dfs_rl.utils.logging import print_status

_EVERY = 30.0
"""Seconds between two lines about running trials."""
_HEAD = "{:>8}  {:>7}  {:>8}  {:>8}  {:>12}  {:>12}  {}"


class ProgressReporter(Callback):
    """Writes a progress table that is readable on a terminal and in a log file.

    The values come from Tune's trials only, so a resumed sweep shows the same figures as before.

    Args:
        what: Heading of the second column.
        total: Number of trials.
        metric: Name of the objective.
        mode: Direction of optimization.
    """

    def __init__(self, what: str, total: int, *, metric: str, mode: Literal["max", "min"]) -> None:
        self._what = what
        self._total = total
        self._metric = metric
        self._best = max if mode == "max" else min
        self._start_time: float | None = None
        self._done_before = 0.0
        self._last_report_time = 0.0
        self._reported: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without clock and reported trials, because Tune stores its callbacks."""
        return {**self.__dict__, "_start_time": None, "_reported": set()}

    def on_step_end(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],
        **info: Any,  # noqa: ARG002, ANN401
    ) -> None:
        """Report trials that have ended and, at intervals, the running ones."""
        now = time.monotonic()
        if self._start_time is None:
            self._start_time = self._last_report_time = now
            self._done_before = _work_done(trials)
            print_status(
                _HEAD.format(
                    "minutes", self._what, "done", "progress", self._metric, "best", "left"
                )
            )
        for trial in trials:
            if _has_ended(trial) and trial.trial_id not in self._reported:
                self._reported.add(trial.trial_id)
                self._report_trial(trial_name(trial, trials), trial, trials)
                self._last_report_time = now
        if now - self._last_report_time >= _EVERY:
            self._last_report_time = now
            running = [trial for trial in trials if trial.status == Trial.RUNNING]
            if running:
                furthest = max(running, key=_progress)
                self._report_trial(f"{len(running)} run", furthest, trials)

    def _report_trial(self, name: str, trial: Trial, trials: list[Trial]) -> None:
        assert self._start_time is not None
        minutes = (time.monotonic() - self._start_time) / 60
        done = sum(_has_ended(t) for t in trials)
        ended = [t for t in trials if _progress(t) >= FULL_PROGRESS and _has_value(t, self._metric)]
        values = [t.last_result[self._metric] for t in ended]
        value = f"{trial.last_result[self._metric]:.4g}" if _has_value(trial, self._metric) else ""
        if trial.last_result and is_penalty(trial.last_result):
            value = "above budget"
        time_left = self._time_left(trials, minutes)
        reason = trial.last_result.get(FAILED) or (
            "its process died too often" if trial.status == Trial.ERROR else ""
        )
        print_status(
            _HEAD.format(
                f"{minutes:.1f}",
                name,
                f"{done}/{self._total}",
                f"{_progress(trial):.0f} %",
                "failed" if reason else value,
                f"{self._best(values):.4g}" if values else "",
                f"failed: {reason}" if reason else time_left,
            )
        )

    def _time_left(self, trials: list[Trial], minutes: float) -> str:
        """Return the estimated remaining time as text, empty without progress since the start."""
        made = _work_done(trials)
        if made <= self._done_before:
            return ""
        rest = self._total - made
        return f"about {minutes * rest / (made - self._done_before):.1f} min"


def _work_done(trials: list[Trial]) -> float:
    """Return the completed work of all trials, in trials; a trial that has ended counts as 1."""
    return sum(1.0 if _has_ended(t) else _progress(t) / FULL_PROGRESS for t in trials)


def _has_ended(trial: Trial) -> bool:
    """Return whether a trial is terminated or has an error."""
    return trial.status in (Trial.TERMINATED, Trial.ERROR)


def _progress(trial: Trial) -> float:
    return float(trial.last_result.get(PROGRESS, 0.0)) if trial.last_result else 0.0


def _has_value(trial: Trial, metric: str) -> bool:
    result = trial.last_result
    return bool(result) and metric in result and not result.get(FAILED) and not is_penalty(result)


def trial_number(trial: Trial) -> int:
    """Return Tune's creation index of a trial; the list order can differ in a resumed sweep."""
    return int(str(trial.experiment_tag).split("_")[0])


def trial_name(trial: Trial, trials: list[Trial]) -> str:
    """Return the name of a trial, its 1-based rank in creation order."""
    rank = sorted(map(trial_number, trials)).index(trial_number(trial))
    return f"{rank + 1:03d}"
