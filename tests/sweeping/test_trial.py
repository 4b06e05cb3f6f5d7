"""Resuming of a training in a trial, and its reports."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from dfs_rl.backbones import default_digits
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.curves import CurvePoint
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.search_config import TrainStaticConfig
from dfs_rl.gating.reward import RewardTerms
from dfs_rl.sweeping import commands
from dfs_rl.sweeping.config import SweepConfig
from dfs_rl.sweeping.objective import ObjectiveConfig
from dfs_rl.sweeping.space import Domain
from dfs_rl.sweeping.spec import SweepFile, check_with_dataset, load_sweep_file
from dfs_rl.sweeping.sweep import resolved, sweep_yaml
from dfs_rl.sweeping.trial import PROGRESS, TrialPlan, _TrialReporter, new_folder, resume_if_started
from dfs_rl.sweeping.tuner import harmless_warnings_ignored
from dfs_rl.utils.config import config_to_dict, load_config
from dfs_rl.utils.io import write_json
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from tests.helpers.latencies import made_up_profile

SWEEP_IN_MS = """\
command: train_static
settings:
  cost: latency
  latency: {profile: profile.json, other_machine: true}
  budget: 13.86
  budget_unit: ms
search: {budget: {uniform: [13.86, 20.79]}}
objective: {name: accuracy, budget: 13.86, budget_unit: ms}
"""


def test_other_settings_reset_the_best_gate(tmp_path: Path) -> None:
    config = TrainAgentConfig(run_dir=tmp_path / "seed0", device="cpu")
    assert resume_if_started(config) is None

    run = commands.create(config, load_dataset("digits"))
    state = {"validation": {"best": {"mean_reward": 0.5}}}
    run.save_checkpoint(LAST_CHECKPOINT, {"weights": torch.ones(2)}, state)
    assert state_of(resume_if_started(config)) == state

    other = TrainAgentConfig(
        run_dir=tmp_path / "seed0", device="cpu", reward=RewardTerms(accuracy=1.0)
    )
    assert state_of(resume_if_started(other)) == {"validation": None}
    stored = load_config(run.config_path, TrainAgentConfig)
    assert (stored.reward.accuracy, stored.start, stored.group_size) == (1.0, "rule", 1)


def test_budgets_in_milliseconds_are_converted_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = made_up_profile(default_digits().costs)  # full precision takes 69.3 ms
    write_json(tmp_path / "profile.json", config_to_dict(profile))
    (tmp_path / "sweep.yaml").write_text(SWEEP_IN_MS)
    file, digits = resolved(SweepConfig(file=tmp_path / "sweep.yaml")), load_dataset("digits")
    assert file.settings["latency"]["profile"] == str(tmp_path / "profile.json")
    check_with_dataset(file, digits, tmp_path / "sweep.yaml")
    objective = commands.budgets_in_percent(file.objective, file.config({}), digits)
    (tmp_path / "sweep.yaml").write_text(sweep_yaml(replace(file, objective=objective)))
    again = load_sweep_file(tmp_path / "sweep.yaml")
    assert commands.budgets_in_percent(again.objective, again.config({}), digits) == objective
    assert objective.budget == pytest.approx(20.0)

    given = file.config({"budget": 20.79}, run_dir=str(tmp_path / "seed0"))
    config = commands.budgets_in_percent(given, given, digits)
    assert commands.budgets_in_percent(config, config, digits) == config
    run = commands.create(config, digits)
    assert resume_if_started(config) is not None
    assert load_config(run.config_path, TrainStaticConfig).budget == pytest.approx(30.0)


def test_runs_of_killed_workers_are_removed(tmp_path):
    stored = tmp_path / "driver_artifacts"  # by Tune, with all that it contains
    left, other = (new_folder(stored / name) for name in ("trial_00000", "trial_00001"))
    (left / "seed0").mkdir()
    again = new_folder(stored / "trial_00000")
    assert [path.is_dir() for path in (left, other, again)] == [False, True, True]
    assert list(again.iterdir()) == []
    assert not stored.exists()


def test_reports_average_the_last_validations(tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(tune, "report", lambda metrics, **_: reports.append(metrics))
    file = SweepFile(
        command="train_agent",
        search={"reward.accuracy": Domain(uniform=(0, 1))},
        objective=ObjectiveConfig(name="accuracy", budget=5.0, last=2),
    )
    plan = TrialPlan(file=file, reference_point=CurvePoint(10.0, 0.0), seeds=(0, 1))
    reporter = _TrialReporter(plan, tmp_path, 2)
    # The first validation of each run is that of the untrained gate.
    for seed, accuracies in enumerate([(99.0, 50.0, 60.0, 70.0), (99.0, 40.0)]):
        run = RunFolder(tmp_path / f"seed{seed}", "train_agent")
        run.path.mkdir()
        for i, accuracy in enumerate(accuracies):
            run.log({"progress": i / (len(accuracies) - 1), "points": [[1.0, accuracy]]})
        reporter.add(run, ())
    found = [(report[PROGRESS], report["accuracy"]) for report in reports]
    assert found == [(50.0, 65.0), (100.0, 52.5)]


def state_of(run: RunFolder | None) -> object:
    assert run is not None
    return run.load_checkpoint(LAST_CHECKPOINT)[1]


def test_a_resumed_trial_repeats_its_last_step_without_a_word():
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    searcher = OptunaSearch(space, metric="accuracy", mode="max")
    searcher.suggest("trial")
    with harmless_warnings_ignored():
        for value in (80.0, 90.0):
            searcher.on_trial_result("trial", {"accuracy": value, "training_iteration": 9})
    assert searcher._ot_trials["trial"].storage.get_trial(0).intermediate_values == {9: 80.0}
