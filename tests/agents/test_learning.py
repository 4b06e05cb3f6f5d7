"""Learning proved on a planted task that no untrained policy and no static table solves."""

import itertools

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.buffers import GroupRolloutBuffer
from dfs_rl.agents.hyperparameters import (
    ALGORITHM_CONFIGS,
    A2CConfig,
    AlgorithmConfig,
    DQNConfig,
    MaskablePPOConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    RolloutSize,
    TRPOConfig,
    resolved_group_size,
)
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from tests.helpers.planted_task import (
    PlantedBackbone,
    learn,
    make_agent,
    mean_reward,
    planted_images,
    reward_of,
)

# Skipping everything, which an untrained gate does, is right for 1 image in 9.
UNTRAINED_REWARD = 1.0 / 9.0
# Both layers at their need: always right, at a mean cost of (0 + 1/8 + 1/2) / 3 per layer.
BEST_REWARD = 1.0 - 0.5 * 2.0 * (0.0 + 0.125 + 0.5) / 3.0
# Everything in full precision: always right, at cost 1. No other table is better.
BEST_TABLE_REWARD = 0.5
ONE_BATCH = {"batch_size": 10**6}
UPDATE = RolloutSize(n_envs=64, n_layers=2, observation_bytes=100)


@pytest.mark.parametrize(
    ("config", "group", "steps", "solved"),
    [
        (PPOConfig(**ONE_BATCH), 8, 8_000, 0.75),
        (PPOConfig(**ONE_BATCH), 1, 8_000, 0.75),
        (A2CConfig(), 8, 20_000, 0.70),
        (A2CConfig(), 1, 20_000, 0.70),
        (TRPOConfig(), 8, 8_000, 0.75),
        (TRPOConfig(), 1, 8_000, 0.75),
        (RecurrentPPOConfig(**ONE_BATCH), 8, 8_000, 0.75),
        (RecurrentPPOConfig(**ONE_BATCH), 1, 8_000, 0.75),
        (DQNConfig(learning_rate=0.01, gradient_steps=8), 1, 8_000, 0.75),
        (QRDQNConfig(learning_rate=0.01, gradient_steps=8), 1, 8_000, 0.75),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_algorithms_solve_the_planted_task(
    config: AlgorithmConfig, group: int, steps: int, solved: float
) -> None:
    model = make_agent(config, group=group)
    assert reward_of(model, config) == pytest.approx(UNTRAINED_REWARD)
    learn(model, config, steps)
    assert BEST_TABLE_REWARD + 0.15 < solved <= reward_of(model, config) <= BEST_REWARD + 1e-9


def test_best_table_is_as_stated() -> None:
    backbone = PlantedBackbone()
    rewards = [
        mean_reward(evaluate_static_table(backbone, planted_images(), table, name="t"), backbone)
        for table in itertools.product(range(3), repeat=2)
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)
    assert rewards[0] == pytest.approx(UNTRAINED_REWARD)


def test_weights_follow_from_the_seed() -> None:
    policies = []
    for seed in (3, 3, 4):
        model = make_agent(PPOConfig(), seed=seed)
        learn(model, PPOConfig(), 512)
        policies.append(torch.cat([value.flatten() for value in model.policy.parameters()]))
    assert torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[0], policies[2])


def test_policy_has_no_head_and_nothing_shared() -> None:
    policy = make_agent(PPOConfig()).policy
    assert not list(policy.action_net.parameters())
    learned = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in policy.parameters()}
    actor = {p.data_ptr() for p in policy.pi_features_extractor.parameters()}
    critic = {p.data_ptr() for p in policy.vf_features_extractor.parameters()}
    assert not actor & critic


@pytest.mark.parametrize(
    "config", [PPOConfig(), A2CConfig(), MaskablePPOConfig(), TRPOConfig(), RecurrentPPOConfig()]
)
def test_group_buffer_needs_groups(config: AlgorithmConfig) -> None:
    assert isinstance(make_agent(config, group=8).rollout_buffer, GroupRolloutBuffer)
    assert not isinstance(make_agent(config, group=1).rollout_buffer, GroupRolloutBuffer)


def test_learning_rate_and_entropy_bonus_fall_linearly() -> None:
    class Watch(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.seen.append(self.model.ent_coef)

    config, watch = PPOConfig(learning_rate=1e-2, final_learning_rate=1e-3, ent_coef=0.02), Watch()
    model = make_agent(config)
    rates = [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0, -0.1)]
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])
    learn(model, config, 4 * 128, watch)
    assert watch.seen == pytest.approx([0.015, 0.01, 0.005, 0.0])


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
def test_defaults_follow_start_and_length(config, start, timesteps, expected) -> None:
    resolved = config.resolve(UPDATE, timesteps=timesteps, start=start)
    found = (resolved.learning_rate, resolved.final_learning_rate)
    assert found == pytest.approx(expected[:2])
    assert getattr(resolved, "ent_coef", None) == expected[2]
    assert resolved.resolve(UPDATE, timesteps=7, start="indifferent") == resolved


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
def test_default_group_size(algo: str, asked: int | None, start, expected: int) -> None:
    assert resolved_group_size(ALGORITHM_CONFIGS[algo](), asked, start=start) == expected


def test_groups_of_q_learning_are_refused() -> None:
    with pytest.raises(ConfigError, match="group_size is 8, but DQN learns from single"):
        make_agent(DQNConfig(), group=8)


def test_minibatches_must_divide_an_update() -> None:
    assert PPOConfig().resolve(UPDATE, timesteps=1, start="uniform").batch_size == 32
    for config in (PPOConfig(batch_size=3), TRPOConfig(batch_size=3)):
        with pytest.raises(ConfigError, match=r"batch_size is 3; it must divide the 128 decisions"):
            config.resolve(UPDATE, timesteps=1, start="uniform")


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        (PPOConfig, {"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        (PPOConfig, {"learning_rate": 1e9}, "learning_rate is 1000000000.0; it must be at most 1"),
        (PPOConfig, {"n_epochs": 0}, "n_epochs is 0; it must be at least 1"),
        (PPOConfig, {"gae_lambda": 1.5}, "gae_lambda is 1.5; it must be at most 1"),
        (A2CConfig, {"ent_coef": -1.0}, "ent_coef is -1.0; it must be at least 0"),
        (A2CConfig, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (DQNConfig, {"exploration_fraction": 0.0}, "exploration_fraction is 0.0; it must be above"),
        (DQNConfig, {"gradient_steps": 0}, "gradient_steps is 0; it must be at least 1"),
        (QRDQNConfig, {"n_quantiles": 0}, "n_quantiles is 0; it must be at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(config, changes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(**changes)
