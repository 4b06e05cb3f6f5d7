"""Population-based training of more trials than cores, where every trial reaches its end."""

from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pb2 import PB2

from dfs_rl.sweeping.trial import FULL_PROGRESS, PROGRESS

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class ForwardPBT(PopulationBasedTraining):
    """PBT in which no trial copies a state with less progress than its own.

    Tune's own compares a trial with the last values of waiting trials. If the objective falls
    during a training, the leading trial copies a waiting one, falls behind, and leads again,
    without end.
    """

    def choose_trial_to_run(
        self,
        tune_controller: "TuneController",  # noqa: ARG002
    ) -> Trial | None:
        """Return the best of the waiting trials with the least progress.

        The worst trial runs last, so that it is compared with current values of all others.
        """
        states = self._trial_state
        return min(
            (t for t in states if t.status in (Trial.PENDING, Trial.PAUSED)),
            key=lambda t: (states[t].last_train_time, -(states[t].last_score or 0.0)),
            default=None,
        )

    def on_trial_result(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> str:
        """Continue at the end of a training, where new settings would train nothing."""
        if result[PROGRESS] >= FULL_PROGRESS:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _checkpoint_or_exploit(
        self,
        trial: Trial,
        tune_controller: "TuneController",
        upper_quantile: list[Trial],
        lower_quantile: list[Trial],
    ) -> None:
        states = self._trial_state
        progress = states[trial].last_train_time
        upper = [t for t in upper_quantile if states[t].last_train_time >= progress]
        lower = lower_quantile if upper else []
        super()._checkpoint_or_exploit(trial, tune_controller, upper, lower)


class ForwardPB2(ForwardPBT, PB2):
    """PB2 with the same rules."""
