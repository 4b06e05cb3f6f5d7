"""What a sweep shows while it runs: one line for every trial that ends, and now and then where the others are."""

import time
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial

from dfs_rl.sweeping.objective import is_penalty
from dfs_rl.sweeping.trial import FAILED, PROGRESS, WHOLE
from dfs_rl.utils.logging import say

_EVERY = 30.0
"""Seconds between two lines about trials that run."""
_HEAD = "{:>8}  {:>7}  {:>8}  {:>8}  {:>12}  {:>12}  {}"


class LiveView(Callback):
    """Writes a table that reads as well on a terminal as in a log file.

    It holds nothing but what is there to be seen in Tune's trials, so that a sweep that is gone on with shows what it did before.

    Args:
        what: What the second column counts.
        total: How many trials there will be.
        metric: The objective's name.
        mode: Whether its highest or lowest value is the best.
    """

    def __init__(self, what: str, total: int, *, metric: str, mode: Literal["max", "min"]) -> None:
        self._what = what
        self._total = total
        self._metric = metric
        self._best = max if mode == "max" else min
        self._began: float | None = None
        self._made_before = 0.0
        self._told_at = 0.0
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Forget the clock and what was told, for Tune stores its callbacks."""
        return {**self.__dict__, "_began": None, "_told": set()}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002, ANN401
        """Tell of trials that ended, and now and then of the others."""
        now = time.monotonic()
        if self._began is None:
            self._began = self._told_at = now
            self._made_before = _made(trials)
            say(
                _HEAD.format(
                    "minutes", self._what, "done", "progress", self._metric, "best", "left"
                )
            )
        for trial in trials:
            if _has_ended(trial) and trial.trial_id not in self._told:
                self._told.add(trial.trial_id)
                self._tell(name_of(trial, trials), trial, trials)
                self._told_at = now
        if now - self._told_at >= _EVERY:
            self._told_at = now
            running = [trial for trial in trials if trial.status == Trial.RUNNING]
            if running:
                furthest = max(running, key=_progress)
                self._tell(f"{len(running)} run", furthest, trials)

    def _tell(self, name: str, trial: Trial, trials: list[Trial]) -> None:
        assert self._began is not None
        minutes = (time.monotonic() - self._began) / 60
        done = sum(_has_ended(t) for t in trials)
        ended = [t for t in trials if _progress(t) >= WHOLE and _has_value(t, self._metric)]
        values = [t.last_result[self._metric] for t in ended]
        value = f"{trial.last_result[self._metric]:.4g}" if _has_value(trial, self._metric) else ""
        if trial.last_result and is_penalty(trial.last_result):
            value = "above cap"
        left = self._left(trials, minutes)
        reason = trial.last_result.get(FAILED) or (
            "its process died too often" if trial.status == Trial.ERROR else ""
        )
        say(
            _HEAD.format(
                f"{minutes:.1f}",
                name,
                f"{done}/{self._total}",
                f"{_progress(trial):.0f} %",
                "failed" if reason else value,
                f"{self._best(values):.4g}" if values else "",
                f"failed: {reason}" if reason else left,
            )
        )

    def _left(self, trials: list[Trial], minutes: float) -> str:
        """Say how long the rest will take if it goes on like this."""
        made = _made(trials)
        if made <= self._made_before:
            return ""
        rest = self._total - made
        return f"about {minutes * rest / (made - self._made_before):.1f} min"


def _made(trials: list[Trial]) -> float:
    """Return the share of all trials' work that is done, in trials; one that ended early has none left."""
    return sum(1.0 if _has_ended(t) else _progress(t) / WHOLE for t in trials)


def _has_ended(trial: Trial) -> bool:
    """Whether nothing more will come of a trial."""
    return trial.status in (Trial.TERMINATED, Trial.ERROR)


def _progress(trial: Trial) -> float:
    return float(trial.last_result.get(PROGRESS, 0.0)) if trial.last_result else 0.0


def _has_value(trial: Trial, metric: str) -> bool:
    result = trial.last_result
    return bool(result) and metric in result and not result.get(FAILED) and not is_penalty(result)


def number_of(trial: Trial) -> int:
    """Return what Tune counted a trial as when it was made; a sweep that is gone on with may list them otherwise."""
    return int(str(trial.experiment_tag).split("_")[0])


def name_of(trial: Trial, trials: list[Trial]) -> str:
    """Return what a trial is called, by the order in which trials were made."""
    rank = sorted(map(number_of, trials)).index(number_of(trial))
    return f"{rank + 1:03d}"
