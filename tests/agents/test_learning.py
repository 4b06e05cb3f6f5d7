"""Learning proved on a planted task that no untrained policy and no static table solves."""

import itertools

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.buffers import GroupRolloutBuffer
from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    DQNConfig,
    MaskablePPOConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
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


@pytest.mark.parametrize(
    ("config", "group", "steps", "solved"),
    [
        (PPOConfig(**ONE_BATCH), 8, 8_000, 0.75),
        (PPOConfig(**ONE_BATCH), 1, 8_000, 0.75),
        (A2CConfig(), 8, 12_000, 0.70),
        (TRPOConfig(), 8, 8_000, 0.75),
        (TRPOConfig(), 1, 5_000, 0.75),
        (RecurrentPPOConfig(**ONE_BATCH), 8, 5_000, 0.75),
        (RecurrentPPOConfig(**ONE_BATCH), 1, 5_000, 0.75),
        (DQNConfig(learning_rate=0.01, gradient_steps=8), 1, 6_500, 0.75),
        (QRDQNConfig(learning_rate=0.01, gradient_steps=8), 1, 6_500, 0.75),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_algorithms_solve_the_planted_task(config, group, steps, solved):
    model = make_agent(config, group=group)
    assert reward_of(model, config) == pytest.approx(UNTRAINED_REWARD)
    learn(model, config, steps)
    assert BEST_TABLE_REWARD + 0.15 < solved <= reward_of(model, config) <= BEST_REWARD + 1e-9


def test_best_table_is_as_stated():
    backbone = PlantedBackbone()
    rewards = [
        mean_reward(evaluate_static_table(backbone, planted_images(), table, name="t"), backbone)
        for table in itertools.product(range(3), repeat=2)
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)
    assert rewards[0] == pytest.approx(UNTRAINED_REWARD)


def test_weights_follow_from_the_seed():
    policies = []
    for seed in (3, 3, 4):
        model = make_agent(PPOConfig(), seed=seed)
        learn(model, PPOConfig(), 512)
        policies.append(torch.cat([value.flatten() for value in model.policy.parameters()]))
    assert torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[0], policies[2])


def test_policy_has_no_head_and_nothing_shared():
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
def test_group_buffer_needs_groups(config):
    assert isinstance(make_agent(config, group=8).rollout_buffer, GroupRolloutBuffer)
    assert not isinstance(make_agent(config, group=1).rollout_buffer, GroupRolloutBuffer)


def test_learning_rate_and_entropy_bonus_fall_linearly():
    class Watch(BaseCallback):
        def __init__(self):
            super().__init__()
            self.seen: list[float] = []

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.seen.append(self.model.ent_coef)

    config, watch = PPOConfig(learning_rate=1e-2, final_learning_rate=1e-3, ent_coef=0.02), Watch()
    model = make_agent(config)
    rates = [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0, -0.1)]
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])
    learn(model, config, 4 * 128, watch)
    assert watch.seen == pytest.approx([0.015, 0.01, 0.005, 0.0])
