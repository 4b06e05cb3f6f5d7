"""Estimates of memory against the weights of a gate, and their growth with the settings."""

import pytest

from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.hyperparameters import DQNConfig, PPOConfig, QRDQNConfig
from dfs_rl.agents.memory import replay_needs, training_needs
from tests.helpers.planted_task import PlantedBackbone

SETTINGS = {"kind": "ff", "features": "all", "hidden": 64, "budget_conditioning": True}
SIZES = {"decisions": 10, "val_images": 10, "val_repeats": 1}
HUGE = 10**9


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_gate_needs_copies_of_its_weights(kind):
    shape = {"kind": kind, "features": "all", "hidden": 64}
    gate = untrained_gate(PlantedBackbone(), budget_conditioning=None, **shape)
    weights = 4 * sum(parameter.numel() for parameter in gate.parameters())
    settings = shape | SIZES | {"decisions": 0, "budget_conditioning": False}
    needs = training_needs(PlantedBackbone(), **settings)
    assert 8 * weights < needs["hidden is 64"] < 16 * weights


@pytest.mark.parametrize(
    ("setting", "least"), [("hidden", 1e11), ("num_envs", 1e10), ("val_repeats", 1e11)]
)
def test_needs_grow_with_the_settings(setting, least):
    settings = SETTINGS | SIZES
    needs = training_needs(PlantedBackbone(), **(settings | {setting: HUGE}))
    assert needs[f"{setting} is {HUGE}"] > least
    assert training_needs(PlantedBackbone(), **settings)["val_repeats is 1"] < 1e5


def test_repeats_count_for_all_budgets_only():
    settings = SETTINGS | SIZES | {"budget_conditioning": False, "val_repeats": HUGE}
    assert training_needs(PlantedBackbone(), **settings)[f"val_repeats is {HUGE}"] < 1e5


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
