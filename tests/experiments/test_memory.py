"""Estimates of memory against the weights of a gate, and their growth with the settings."""

import pytest

from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.hyperparameters import DQNConfig, PPOConfig, QRDQNConfig
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.memory import replay_needs, training_needs
from tests.helpers.planted_task import PlantedBackbone

SIZES = {"decisions": 10, "val_images": 10, "hidden": 64, "kind": "ff"}
HUGE = 10**9


def needs_of(*, val_repeats=1, fixed_budget=False, **sizes):
    config = TrainAgentConfig(
        passes=1, features="all", val_repeats=val_repeats, fixed_budget=fixed_budget
    )
    return training_needs(config, PlantedBackbone(), **(SIZES | sizes))


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_gate_needs_copies_of_its_weights(kind):
    shape = {"kind": kind, "features": "all", "hidden": 64}
    gate = untrained_gate(PlantedBackbone(), budget_conditioning=None, **shape)
    weights = 4 * sum(parameter.numel() for parameter in gate.parameters())
    needs = needs_of(kind=kind, decisions=0, fixed_budget=True)
    assert 8 * weights < needs["hidden is 64"] < 16 * weights


@pytest.mark.parametrize(
    ("setting", "least"), [("hidden", 1e11), ("num_envs", 1e10), ("val_repeats", 1e11)]
)
def test_needs_grow_with_the_settings(setting, least):
    assert needs_of(**{setting: HUGE})[f"{setting} is {HUGE}"] > least
    assert needs_of()["val_repeats is 1"] < 1e5


@pytest.mark.parametrize(
    ("config", "setting", "least"),
    [
        (DQNConfig(buffer_size=5000), "buffer_size is 5000", 1e5),
        (QRDQNConfig(n_quantiles=10**6), "n_quantiles is 1000000", 1e14),
    ],
)
def test_needs_of_replay(config, setting, least):
    assert replay_needs(config, PlantedBackbone(), budget_conditioning=True)[setting] > least
    assert replay_needs(PPOConfig(), PlantedBackbone(), budget_conditioning=True) == {}
