"""Order and exchange of a population's trials that share one core, without Ray's processes."""

from unittest.mock import MagicMock

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.space import Domain
from dfs_rl.sweeping.spec import SchedulerConfig, SweepFile
from dfs_rl.sweeping.trial import PROGRESS
from dfs_rl.sweeping.tuner import tune_config


def train_all(name, first, slope):
    """Return the progress that each trial reports, and the copies as pairs of target and source."""
    file = SweepFile(
        command="train_agent",
        search={"reward.accuracy": Domain(uniform=(0, 1))},
        objective=ObjectiveConfig(name="accuracy", budget=5.0),
        searcher="random",
        scheduler=SchedulerConfig(name=name, interval=0.25),
    )
    scheduler, controller = tune_config(file).scheduler, MagicMock(search_alg=None)
    trials = [MagicMock(status=Trial.PENDING, config={}) for _ in first]
    progress, reports, copies = [0] * len(trials), [[] for _ in trials], []

    def copy(_, target, source):
        state, other = scheduler._trial_state[target], scheduler._trial_state[source]
        state.last_train_time = other.last_train_time
        state.last_perturbation_time = other.last_perturbation_time
        i, j = trials.index(target), trials.index(source)
        progress[i] = progress[j]
        copies.append((i, j))

    scheduler._exploit = copy
    controller.get_trials.return_value = trials
    controller._schedule_trial_save.return_value = "checkpoint"
    for trial in trials:
        trial.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = None
        trial.is_finished = lambda trial=trial: trial.status == Trial.TERMINATED
        scheduler.on_trial_add(controller, trial)
    for _ in range(50):
        if (trial := scheduler.choose_trial_to_run(controller)) is None:
            break
        i, trial.status = trials.index(trial), Trial.RUNNING
        progress[i] += 25
        reports[i].append(progress[i])
        value = first[i] + slope * progress[i]
        decision = scheduler.on_trial_result(
            controller, trial, {PROGRESS: progress[i], "accuracy": value}
        )
        ended = decision == TrialScheduler.CONTINUE
        trial.status = Trial.TERMINATED if ended else Trial.PAUSED
    return reports, copies


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_trials_only_go_forward_and_the_worst_copies(name):
    each_once = [25, 50, 75, 100]
    # Values that fall make the leading trial worse than a waiting one.
    assert train_all(name, [0, 1], slope=-0.1) == ([each_once] * 2, [])
    # The order of the trials' creation does not matter.
    assert train_all(name, [0, 1], slope=0.1) == ([each_once] * 2, [(0, 1)] * 2)
    assert train_all(name, [1, 0], slope=0.1) == ([each_once] * 2, [(1, 0)] * 2)
