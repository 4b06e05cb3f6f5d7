"""A hard budget: no image ever spends more, gate, stem and head included, neither while learning nor deployed."""

import itertools
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.buffers import GroupRolloutBuffer
from dfs_rl.agents.callbacks import Schedules
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import AlgorithmConfig, MaskablePPOConfig, PPOConfig
from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.data import ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.gating.base import Gate
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.reward import RewardWeights
from tests.agents.conftest import MENU, PlantedBackbone

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0, cost=0.1, overshoot=0.0)
HIDDEN = 4

# What nobody chooses, in percent of the 200 MACs of the gated layers: a gate of 2 x 4 x (3 + 3 + 3) MACs, and a stem of 16 at 8 bit.
GATE = 100.0 * 72 / 200
STEM = 100.0 * 16 * (8 / 32) ** 2 / 200
# What is left is enough for one layer in full precision beside one at 16 bit (62.5 %), but not for two in full precision.
BUDGET = GATE + STEM + 70.0

# Skipping everything is right for 1 image in 9, and that is what an untrained gate does.
UNTRAINED_REWARD = 1.0 / 9.0
# Eight of the nine needs fit the budget and are met at cost a + b, of (0, 1/8, 1/2) each; nothing is spent on the ninth.
BEST_REWARD = (8.0 - 0.1 * (3 * 2 * 0.625 - 1.0)) / 9.0
# Of the eight tables within the budget, (1, 2) is right for six needs of nine, at cost 5/8.
BEST_TABLE_REWARD = 6.0 / 9.0 - 0.1 * 0.625


class PlantedWithStem(PlantedBackbone):
    costs = CostTable(
        options=BitOptions(MENU),
        layer_macs=(100, 100),
        fixed=(FixedCost(name="stem", macs=16, bits=8),),
    )


class Spending(BaseCallback):
    """Keeps what every walk of a training spent, in percent, without the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: list[float] = []

    def _on_step(self) -> bool:
        self.spent += [info["computation"] for info in self.locals["infos"] if info]
        return True


def train(
    config: AlgorithmConfig, images: ImageSet, steps: int, *, group: int = 8
) -> tuple[BaseAlgorithm, Spending]:
    backbone = PlantedWithStem()
    task = Task(
        backbone=backbone,
        images=images,
        reward=WEIGHTS,
        budget=BUDGET,
        class_names=("no", "yes"),
        gate_macs=72.0,
    )
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=HIDDEN,
        group_size=group,
        seed=0,
        device="cpu",
    )
    model = build_algorithm(config, SB3GatingVecEnv(task, 64, group_size=group, seed=0), learning)
    model.set_logger(Logger(None, []))
    spending = Spending()
    model.learn(steps, [Schedules(seed=0, config=config), spending], log_interval=10**9)
    return model, spending


def gate_of(model: BaseAlgorithm) -> MLPGate:
    backbone = PlantedWithStem()
    gate = deploy(model, backbone.options, feature_macs=0.0, name="gate", budget=BUDGET)
    assert isinstance(gate, MLPGate)
    return gate


def outcomes(gate: Gate, images: ImageSet, *, budget: float | None) -> tuple[torch.Tensor, float]:
    """Computation of each image, everything included, and the mean reward."""
    logits, trace = GatedModel(PlantedWithStem(), gate, budget=budget)(images.images)
    right = (logits.argmax(dim=1) == images.labels).double()
    spent = (trace.computation - GATE - STEM) / 100.0
    return trace.computation, float((right - WEIGHTS.cost * spent).mean())


def test_masked_ppo_learns_the_best_within_a_budget_that_plain_ppo_exceeds(
    planted_images: ImageSet,
) -> None:
    untrained, _ = train(MaskablePPOConfig(batch_size=10**6), planted_images, 0)
    _, reward = outcomes(gate_of(untrained), planted_images, budget=BUDGET)
    assert reward == pytest.approx(UNTRAINED_REWARD)
    masked, spending = train(MaskablePPOConfig(batch_size=10**6), planted_images, 12_000)
    assert len(spending.spent) >= 6_000
    assert max(spending.spent) + GATE <= BUDGET  # not even while it explored
    computation, reward = outcomes(gate_of(masked), planted_images, budget=BUDGET)
    assert float(computation.max()) <= BUDGET
    assert 0.75 <= reward <= BEST_REWARD + 1e-9
    assert BEST_TABLE_REWARD + 0.1 < 0.75

    free, spending = train(PPOConfig(batch_size=10**6), planted_images, 12_000)
    assert max(spending.spent) + GATE > BUDGET
    computation, _ = outcomes(gate_of(free), planted_images, budget=None)
    assert float(computation.max()) > BUDGET


def test_the_best_table_within_the_budget_is_as_stated(planted_images: ImageSet) -> None:
    needs = planted_images.images[:, 1:, 0, 0].long()  # [18, layers]
    costs = {0: 0.0, 1: 0.125, 2: 0.5}
    rewards = [
        float((needs <= torch.tensor(table)).all(dim=1).double().mean())
        - WEIGHTS.cost * sum(costs[option] for option in table)
        for table in itertools.product(range(3), repeat=2)
        if table != (2, 2)
    ]
    assert max(rewards) == pytest.approx(BEST_TABLE_REWARD)


class Watching(MLPGate):
    """Keeps the budgets that it sees."""

    seen: set[float]

    def decide(self, features, layer, context, allowed=None):
        self.seen |= set(context[:, 1].tolist())
        return super().decide(features, layer, context, allowed)


def test_a_gate_sees_the_budget_that_it_is_held_to(planted_images: ImageSet) -> None:
    model, _ = train(MaskablePPOConfig(), planted_images, 0)
    env = model.get_env()
    assert isinstance(env, SB3GatingVecEnv)
    seen = env.reset()["context"][:, 1]
    gate = gate_of(model)
    assert gate.macs == env.task.gate_macs
    gate.__class__, gate.seen = Watching, set()
    GatedModel(PlantedWithStem(), gate, budget=BUDGET)(planted_images.images)
    # 70 % are left for the gated layers; see ``BUDGET``.
    expected = math.log2(1 + 32 * math.sqrt(0.7)) / math.log2(33)
    assert seen.tolist() == pytest.approx([expected] * len(seen))
    assert list(gate.seen) == pytest.approx([expected])


@pytest.mark.parametrize("group", [8, 1])
def test_deployed_decisions_are_those_of_the_masked_policy(
    planted_images: ImageSet, group: int
) -> None:
    model, _ = train(MaskablePPOConfig(), planted_images, 1_000, group=group)
    assert isinstance(model.rollout_buffer, GroupRolloutBuffer) == (group > 1)
    with torch.no_grad():  # it wants what it may not: both layers dear, layer 1 above all
        model.policy.pi_features_extractor.outer_bias[:, 2] += 3.0
    env = model.get_env()
    assert isinstance(env, SB3GatingVecEnv)
    env = SB3GatingVecEnv(env.task, len(planted_images))
    env.set_options([{"index": i} for i in range(len(planted_images))])
    observation = env.reset()
    chosen, forbidden = [], 0
    for _ in range(2):
        masks = env.action_masks()
        actions, _ = model.predict(observation, deterministic=True, action_masks=masks)
        forbidden += int((~masks).sum())
        chosen.append(actions)
        observation, *_ = env.step(actions)
    _, trace = GatedModel(PlantedWithStem(), gate_of(model), budget=BUDGET)(planted_images.images)
    np.testing.assert_array_equal(np.stack(chosen, axis=1), trace.options.numpy())
    assert forbidden > 0
    assert float(trace.computation.max()) <= BUDGET
