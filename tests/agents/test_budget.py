"""Per-input budget: no image exceeds it, neither in training nor deployed."""

import itertools
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.hyperparameters import MaskablePPOConfig, PPOConfig
from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.planted_task import (
    OPTIONS,
    PlantedBackbone,
    gate_of,
    learn,
    make_agent,
    make_task,
    planted_images,
)

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=0.1, overshoot=0.0)
HIDDEN = 4
# Fixed costs in percent of the 200 MACs of the gated layers: a gate of 2 x 4 x (3 + 3 + 3) MACs,
# and a stem of 16 at 8 bit.
GATE = 100.0 * 72 / 200
STEM = 100.0 * 16 * (8 / 32) ** 2 / 200
# The rest allows full precision in one layer and 16 bit in the other, 62.5 %.
BUDGET = GATE + STEM + 70.0
# An untrained gate skips everything, which is right for 1 image in 9.
UNTRAINED_REWARD = 1.0 / 9.0
# Eight of the nine needs fit, at cost a + b, of (0, 1/8, 1/2) each; the ninth image skips all.
BEST_REWARD = (8.0 - 0.1 * (3 * 2 * 0.625 - 1.0)) / 9.0
# Of the eight tables within the budget, (1, 2) is right for six needs of nine, at cost 5/8.
BEST_TABLE_REWARD = 6.0 / 9.0 - 0.1 * 0.625
ONE_BATCH = {"batch_size": 10**6}


class PlantedWithStem(PlantedBackbone):
    costs = CostTable(
        options=BitOptions(OPTIONS),
        layer_macs=(100, 100),
        fixed=(FixedCost(name="stem", macs=16, bits=8),),
    )


class Spending(BaseCallback):
    """Records the computation of every episode in percent, without the gate."""

    def __init__(self):
        super().__init__()
        self.spent: list[float] = []

    def _on_step(self):
        self.spent += [info["computation"] for info in self.locals["infos"] if info]
        return True


def train(config, steps, *, group=8):
    task = make_task(PlantedWithStem(), reward=WEIGHTS, budget=BUDGET, gate_macs=72.0)
    model, spending = make_agent(config, task, group=group, hidden=HIDDEN), Spending()
    learn(model, config, steps, spending)
    return model, gate_of(model, config, budget=BUDGET), spending.spent


def outcomes(gate, *, budget=BUDGET):
    """Return the highest computation, everything included, and the mean reward."""
    images = planted_images()
    logits, trace = GatedModel(PlantedWithStem(), gate, budget=budget)(images.images)
    right = (logits.argmax(dim=1) == images.labels).double()
    spent = (trace.computation - GATE - STEM) / 100.0
    return float(trace.computation.max()), float((right - WEIGHTS.cost * spent).mean())


def test_masked_ppo_learns_within_the_budget():
    _, untrained, _ = train(MaskablePPOConfig(**ONE_BATCH), 0)
    assert outcomes(untrained)[1] == pytest.approx(UNTRAINED_REWARD)
    _, masked, spent = train(MaskablePPOConfig(**ONE_BATCH), 6_000)
    assert len(spent) >= 3_000
    assert max(spent) + GATE <= BUDGET  # exploration stays within it
    computation, reward = outcomes(masked)
    assert computation <= BUDGET
    assert BEST_TABLE_REWARD + 0.1 < 0.75 <= reward <= BEST_REWARD + 1e-9

    _, free, spent = train(PPOConfig(**ONE_BATCH), 6_000)
    assert max(spent) + GATE > BUDGET
    assert outcomes(free, budget=None)[0] > BUDGET


def test_best_table_within_the_budget_is_as_stated():
    needs = planted_images().images[:, 1:, 0, 0].long()  # [18, layers]
    costs = (0.0, 0.125, 0.5)
    rewards = [
        float((needs <= torch.tensor(table)).all(dim=1).double().mean())
        - WEIGHTS.cost * sum(costs[option] for option in table)
        for table in itertools.product(range(3), repeat=2)
        if table != (2, 2)
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)


class Watching(MLPGate):
    """Gate that records the budgets that it observes."""

    seen: set[float]

    def decide(self, features, layer, context, allowed=None):
        self.seen |= set(context[:, 1].tolist())
        return super().decide(features, layer, context, allowed)


def test_gate_observes_its_budget():
    model, gate, _ = train(MaskablePPOConfig(), 0)
    env = model.get_env()
    seen = env.reset()["context"][:, 1]
    assert gate.macs == env.task.gate_macs
    gate.__class__, gate.seen = Watching, set()
    GatedModel(PlantedWithStem(), gate, budget=BUDGET)(planted_images().images)
    # 70 % are left for the gated layers; see ``BUDGET``.
    expected = math.log2(1 + 32 * math.sqrt(0.7)) / math.log2(33)
    assert seen.tolist() == pytest.approx([expected] * len(seen))
    assert list(gate.seen) == pytest.approx([expected])


@pytest.mark.parametrize("group", [8, 1])
def test_deployed_decisions_are_the_masked_policys(group):
    config = MaskablePPOConfig()
    model, _, _ = train(config, 1_000, group=group)
    with torch.no_grad():  # it prefers what is masked: full precision in both layers
        model.policy.pi_features_extractor.outer_bias[:, 2] += 3.0
    images = planted_images().images
    env = SB3GatingVecEnv(model.get_env().task, len(images))
    env.set_options([{"index": i} for i in range(len(images))])
    observation = env.reset()
    chosen, masked = [], 0
    for _ in range(2):
        masks = env.action_masks()
        actions, _ = model.predict(observation, deterministic=True, action_masks=masks)
        masked += int((~masks).sum())
        chosen.append(actions)
        observation, *_ = env.step(actions)
    gate = gate_of(model, config, budget=BUDGET)
    _, trace = GatedModel(PlantedWithStem(), gate, budget=BUDGET)(images)
    np.testing.assert_array_equal(np.stack(chosen, axis=1), trace.options.numpy())
    assert masked > 0
    assert float(trace.computation.max()) <= BUDGET
