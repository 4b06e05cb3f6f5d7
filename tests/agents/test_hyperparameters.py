"""Defaults of hyperparameters that depend on the training, and refusal of impossible ones."""

import math

import pytest

from dfs_rl.agents.hyperparameters import (
    ALGORITHM_CONFIGS,
    A2CConfig,
    CoTrainConfig,
    DQNConfig,
    PPOConfig,
    QRDQNConfig,
    TRPOConfig,
    resolved_group_size,
)
from dfs_rl.agents.methods import register_method
from dfs_rl.agents.supervised.config import BlockDropConfig, SkipNetConfig, SupervisedConfig
from dfs_rl.errors import ConfigError
from tests.helpers.planted_task import make_agent

UPDATE = 64, 2, 100
"""Episodes of an update, their steps, and bytes of an observation."""


@pytest.mark.parametrize(
    ("config", "start", "timesteps", "expected"),
    [
        (PPOConfig(), "indifferent", 600_000, (0.02, 0.001, 0.03)),
        (PPOConfig(), "indifferent", 3_000_000, (0.004, 0.0002, 0.03)),
        (A2CConfig(), "indifferent", 1_000, (0.03, 0.0015, 0.03)),
        (A2CConfig(), "uniform", 300_000, (0.005, 0.00025, 0.0)),
        (PPOConfig(), "uniform", 100, (0.03, 0.0015, 0.0)),
        (PPOConfig(learning_rate=0.1, ent_coef=0.01), "uniform", 10**6, (0.1, 0.005, 0.01)),
        (PPOConfig(learning_rate=0.1, final_learning_rate=0.0), "uniform", 5, (0.1, 0.0, 0.0)),
        # Its learning rates are the critic's, which starts untrained in any case.
        (TRPOConfig(), "uniform", 300_000, (0.03, 0.0015, None)),
        (DQNConfig(), "indifferent", 300_000, (0.003, 0.00015, None)),
    ],
)
def test_defaults_follow_start_and_length(config, start, timesteps, expected):
    resolved = config.resolve(*UPDATE, timesteps=timesteps, start=start)
    found = (resolved.learning_rate, resolved.final_learning_rate)
    assert found == pytest.approx(expected[:2])
    assert getattr(resolved, "ent_coef", None) == expected[2]
    assert resolved.resolve(*UPDATE, timesteps=7, start="indifferent") == resolved


@pytest.mark.parametrize(
    ("algo", "asked", "start", "expected"),
    [
        ("ppo", None, "uniform", 1),
        ("ppo", None, "indifferent", 8),
        ("ppo", 4, "uniform", 4),
        ("ppo", 1, "indifferent", 1),
        ("dqn", None, "indifferent", 1),
        ("qrdqn", 1, "indifferent", 1),
    ],
)
def test_default_group_size(algo, asked, start, expected):
    assert resolved_group_size(ALGORITHM_CONFIGS[algo](), asked, start=start) == expected


def test_groups_of_q_learning_are_refused():
    with pytest.raises(ConfigError, match="group_size is 8, but DQN learns from single"):
        make_agent(DQNConfig(), group=8)


def test_minibatches_must_divide_an_update():
    assert PPOConfig().resolve(*UPDATE, timesteps=1, start="uniform").batch_size == 32
    for config in (PPOConfig(batch_size=3), TRPOConfig(batch_size=3)):
        with pytest.raises(ConfigError, match=r"batch_size is 3; it must divide the 128 decisions"):
            config.resolve(*UPDATE, timesteps=1, start="uniform")


@pytest.mark.parametrize(
    ("config", "setting", "value", "sentence"),
    [
        (PPOConfig, "learning_rate", 0.0, "it must be above 0"),
        (PPOConfig, "learning_rate", 1e9, "it must be at most 1"),
        (PPOConfig, "n_epochs", 0, "it must be at least 1"),
        (PPOConfig, "gae_lambda", 1.5, "it must be at most 1"),
        (A2CConfig, "ent_coef", -1.0, "it must be at least 0"),
        (A2CConfig, "learning_rate", math.nan, ""),
        (DQNConfig, "exploration_fraction", 0.0, "it must be above 0"),
        (DQNConfig, "gradient_steps", 0, "it must be at least 1"),
        (QRDQNConfig, "n_quantiles", 0, "it must be at least 1"),
        (CoTrainConfig, "batch_size", 0, "it must be at least 1"),
        (CoTrainConfig, "distillation", -1.0, ""),
        (SupervisedConfig, "learning_rate", 0.0, "it must be above 0"),
        (SupervisedConfig, "temperature", math.inf, "it must be finite"),
        (SupervisedConfig, "multiplier_learning_rate", -1.0, "it must be at least 0"),
        (SupervisedConfig, "batch_size", 0, "it must be at least 1"),
        (SkipNetConfig, "pretraining", -0.1, "it must be at least 0"),
        (SkipNetConfig, "pretraining", 1.0, "it must be below 1"),
        (SkipNetConfig, "pretraining", math.nan, "it must be finite"),
        (SkipNetConfig, "ent_coef", -1.0, "it must be at least 0"),
        (SkipNetConfig, "ent_coef", math.inf, "it must be finite"),
        (BlockDropConfig, "curriculum", 0.0, "it must be above 0"),
        (BlockDropConfig, "penalty", -1.0, "it must be at least 0"),
        (BlockDropConfig, "bound", 0.5, "it must be above 0.5"),
        (BlockDropConfig, "bound", math.nan, ""),
    ],
)
def test_impossible_values_are_refused(config, setting, value, sentence):
    with pytest.raises(ConfigError, match=rf"{setting} is {value}.*{sentence}"):
        config(**{setting: value})


def test_methods_of_all_kinds_have_different_names():
    with pytest.raises(ConfigError, match="method 'gumbel' is already registered"):
        register_method("gumbel")(PPOConfig)
    assert "gumbel" not in ALGORITHM_CONFIGS


@pytest.mark.parametrize("method", [lambda: None, dict, 3])
def test_only_methods_are_registered(method):
    with pytest.raises(ConfigError, match="method 'odd' is "):
        register_method("odd")(method)
