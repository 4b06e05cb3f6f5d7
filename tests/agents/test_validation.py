"""Returns of recorded episodes, and the criterion of the best gate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfs_rl.agents.validation import Validator, is_not_worse, rewards_of
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.planted_task import PlantedBackbone, make_gate, make_task, planted_images


@pytest.mark.parametrize(("budget", "gate_macs"), [(None, 0.0), (40.0, 0.0), (40.0, 20.0)])
@pytest.mark.parametrize("timing", ["step", "terminal"])
def test_rewards_equal_those_of_the_environment(budget, gate_macs, timing):
    reward = RewardWeights(accuracy=0.7, cost=0.4, overshoot=0.9, cost_timing=timing)
    table, n = (1, 2), len(planted_images())  # 62.5 %, above a budget of 40 %
    records = evaluate_gate(PlantedBackbone(), TableGate(table), planted_images())
    records = replace(records, gate_macs=gate_macs)  # as from a gate of that cost
    env = SB3GatingVecEnv(make_task(reward=reward, budget=budget, gate_macs=gate_macs), n)
    env.set_options([{"index": i} for i in range(n)])
    env.reset()
    paid = sum(env.step(np.full(n, option))[1] for option in table)
    ours = rewards_of(records, PlantedBackbone.costs, reward, budget=budget)
    np.testing.assert_allclose(ours.numpy(), paid, atol=1e-6)


def test_later_gate_may_be_worse_by_one_standard_error():
    highest = torch.zeros(100, dtype=torch.float64)
    change = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)
    error = float(change.std()) / 10.0  # of the mean of 100
    assert is_not_worse(highest + change - 0.99 * error, highest)
    assert not is_not_worse(highest + change - 1.01 * error, highest)
    assert is_not_worse(highest, highest)
    assert not is_not_worse(highest - 1e-9, highest)  # certainly worse: no image is better


def test_repeats_of_an_image_are_averaged():
    images, gate = planted_images(), make_gate(budget_conditioning=BudgetConditioning())
    validator = Validator(
        images,
        reward=lambda records, _: records.labels.double(),
        every=1,
        total=1,
        repeats=3,
        backbone=PlantedBackbone,
    )
    validator.validate(gate, 0)
    (rewards,) = validator.tensors().values()
    assert rewards.tolist() == images.labels.tolist()
