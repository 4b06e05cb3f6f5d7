"""Resuming of a training in a trial."""

from pathlib import Path

import torch

from dfs_rl.data import load_dataset
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.gating.reward import RewardTerms
from dfs_rl.sweeping.commands import command_of
from dfs_rl.sweeping.trial import resume_if_started
from dfs_rl.utils.config import load_config
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder


def test_other_settings_reset_the_best_gate(tmp_path: Path) -> None:
    command = command_of("train_agent")
    config = TrainAgentConfig(run_dir=tmp_path / "seed0", device="cpu")
    assert resume_if_started(command, config) is None

    run = command.create(config, load_dataset("digits"))
    state = {"validation": {"best": {"mean_reward": 0.5}}}
    run.save_checkpoint(LAST_CHECKPOINT, {"weights": torch.ones(2)}, state)
    assert state_of(resume_if_started(command, config)) == state

    other = TrainAgentConfig(
        run_dir=tmp_path / "seed0", device="cpu", reward=RewardTerms(accuracy=1.0)
    )
    assert state_of(resume_if_started(command, other)) == {"validation": None}
    stored = load_config(run.config_path, TrainAgentConfig)
    assert (stored.reward.accuracy, stored.start, stored.group_size) == (1.0, "uniform", 1)


def state_of(run: RunFolder | None) -> object:
    assert run is not None
    return run.load_checkpoint(LAST_CHECKPOINT)[1]
