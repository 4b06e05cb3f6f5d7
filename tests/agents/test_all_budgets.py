"""One gate for all budgets learns, on the planted task, what each price is worth: by reinforcement and by supervision."""

import math
from typing import NamedTuple

import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import nn

from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.callbacks import Schedules
from dfs_rl.agents.evaluation_callback import rewards_of
from dfs_rl.agents.gate_export import deploy
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.supervised.config import SupervisedConfig
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.agents.supervised.trainer import GateTask
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.budget_conditioning import N_PREFERENCES, calibrate_budget_conditioning
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments.gumbel_training import budgeted_rewards, budgets_of, targets
from dfs_rl.gating.budget_conditioning import (
    BudgetConditioning,
    BudgetRange,
    CostWeightRange,
    low_discrepancy_preferences,
)
from dfs_rl.gating.networks import LearnedGate, MLPGate
from dfs_rl.gating.reward import RewardWeights
from tests.agents.supervised.test_gumbel import SmoothPlantedBackbone, make_config

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0)
COSTS = (0.0, 0.125, 0.5)
"""Of skipping, 16 and 32 bit at one of the two layers."""
# At 0.25 all needs are worth their cost; at 6 only those are that cost less than a sixth.
PRICES = CostWeightRange(lowest=0.25, highest=6.0)
BUDGETS = BudgetRange(lowest=10.0, highest=42.0)
"""What the needs of images cost: 0, 1/8 or 1/2 in either layer, 41.7 % on average."""


def best_reward(price: float) -> float:
    """Of a gate that meets an image's needs where that is worth it, and skips everything else."""
    needs = [a + b for a in COSTS for b in COSTS]
    return sum(max(0.0, 1.0 - price * cost) for cost in needs) / len(needs)


class Turned(NamedTuple):
    """What a gate does with its dial at one position."""

    accuracy: float
    spent: float

    def regret(self, price: float) -> float:
        """By how much the reward misses the best."""
        return best_reward(price) - (self.accuracy - price * self.spent)


def turned(gate: LearnedGate, images: ImageSet, preference: float) -> Turned:
    backbone = SmoothPlantedBackbone()
    records = evaluate_gate(
        backbone, gate, images, preferences=torch.full((len(images),), preference)
    )
    return Turned(records.accuracy / 100, float(backbone.costs.fractions(records.options).mean()))


def by_reinforcement(backbone: WalkableBackbone, images: ImageSet) -> LearnedGate:
    task = Task(
        backbone=backbone,
        images=images,
        reward=WEIGHTS,
        budget=None,
        class_names=("no", "yes"),
        cost_weight_range=PRICES,
    )
    config = PPOConfig(batch_size=10**6, learning_rate=0.01)
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=16,
        group_size=8,
        seed=0,
        device="cpu",
    )
    model = build_algorithm(config, SB3GatingVecEnv(task, 512, group_size=8, seed=0), learning)
    model.set_logger(Logger(None, []))
    schedules = Schedules(seed=0, config=config)
    model.learn(100_000, [schedules], log_interval=10**9)
    return deploy(
        model,
        backbone.options,
        feature_macs=0.0,
        name="gate",
        budget_conditioning=BudgetConditioning(),
    )


def by_supervision(backbone: WalkableBackbone, images: ImageSet) -> LearnedGate:
    torch.manual_seed(0)
    gate = MLPGate((3, 3), backbone.options, hidden=16, budget_conditioning=BudgetConditioning())
    trainer = GumbelTrainer(
        SupervisedConfig(batch_size=18, learning_rate=0.03),
        GateTask(
            backbone=backbone,
            frozen=backbone,
            gate=gate,
            images=images,
            target=lambda preferences: BUDGETS.at(preferences) / 100,
            steps=1200,
            seed=0,
        ),
    )
    for _ in range(1200):
        trainer.step()
    return gate.eval()


POSITIONS_SHOWN = (0.0, 0.5, 1.0)


def test_reinforcement_learns_at_every_price_what_is_worth_it(planted_images: ImageSet) -> None:
    gate = by_reinforcement(SmoothPlantedBackbone(), planted_images)
    found = [turned(gate, planted_images, p) for p in POSITIONS_SHOWN]
    cost_weight_range = PRICES.at(torch.tensor(POSITIONS_SHOWN)).tolist()
    for what, price in zip(found, cost_weight_range, strict=True):
        assert -1e-6 <= what.regret(price) <= 0.1
    assert found[-1].spent > found[0].spent + 0.3


def test_supervision_holds_every_budget_and_does_what_it_allows(planted_images: ImageSet) -> None:
    gate = by_supervision(SmoothPlantedBackbone(), planted_images)
    found = [turned(gate, planted_images, p) for p in POSITIONS_SHOWN]
    budgets = BUDGETS.at(torch.tensor(POSITIONS_SHOWN)).tolist()
    for what, budget in zip(found, budgets, strict=True):
        assert 100 * what.spent <= 1.2 * budget
    assert [what.accuracy for what in found] == sorted(what.accuracy for what in found)
    assert (
        found[-1].accuracy >= 0.9
    )  # its budget suffices for all needs; no table does better than 4 of 9


def test_an_untrained_gate_does_neither(planted_images: ImageSet) -> None:
    torch.manual_seed(0)
    gate = MLPGate(
        (3, 3), SmoothPlantedBackbone.options, hidden=16, budget_conditioning=BudgetConditioning()
    )
    found = turned(gate, planted_images, 1.0)
    assert found.regret(PRICES.lowest) > 0.2
    assert found.accuracy < 0.5


def test_the_dial_is_measured_from_end_to_end(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    torch.manual_seed(0)
    gate = MLPGate((3, 3), backbone.options, hidden=16, budget_conditioning=BudgetConditioning())
    measured = calibrate_budget_conditioning(backbone, gate, planted_images)[0]
    assert len(measured.computations) >= N_PREFERENCES
    for end, preference in ((0, 0.0), (-1, 1.0)):
        gate.preference = preference
        records = evaluate_gate(backbone, gate, planted_images)
        own = float(records.computation(backbone.costs).mean())
        assert measured.computations[end] == pytest.approx(own)


def test_a_jump_of_the_dial_is_found_and_no_budget_falls_into_it(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    gate = MLPGate((3, 3), backbone.options, hidden=1, budget_conditioning=BudgetConditioning())
    jump = 0.6180339887
    with torch.no_grad():
        for network in gate.networks:
            first, _, last = network.children()
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            first.weight.zero_()
            first.weight[0, -1] = 1.0  # the position comes last
            first.bias.zero_()
            last.weight.copy_(torch.tensor([[0.0], [-1.0], [1.0]]))
            last.bias.copy_(torch.tensor([-9.0, math.tanh(jump), -math.tanh(jump)]))
    gate.budget_conditioning, _ = calibrate_budget_conditioning(backbone, gate, planted_images)
    low, high = gate.budget_conditioning.budget_range
    assert high > 1.5 * low
    assert (
        len(gate.budget_conditioning.computations) == N_PREFERENCES + 9
    )  # halves of an eighth, down to 2^-12
    for budget in (low, 0.5 * (low + high), 0.999 * high):
        assert gate.budget_conditioning.preference_for_budget(budget) == pytest.approx(
            jump, abs=2.0**-12
        )
        gate.preference = gate.budget_conditioning.preference_for_budget(budget)
        records = evaluate_gate(backbone, gate, planted_images)
        assert float(records.computation(backbone.costs).mean()) == pytest.approx(low)


def test_validation_rewards_each_image_at_a_price_of_its_own(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    records = evaluate_static_table(backbone, planted_images, (1, 2), name="table")
    rewards = rewards_of(records, backbone.costs, WEIGHTS, budget=None, cost_weight_range=PRICES)
    spent = 0.125 + 0.5  # of two layers' cost, see COSTS
    for i, preference in enumerate(low_discrepancy_preferences(len(planted_images)).tolist()):
        price = 6.0 * (0.25 / 6.0) ** preference
        expected = float(records.correct[i]) - price * spent
        assert float(rewards[i]) == pytest.approx(expected, rel=1e-5)


def test_each_stretch_of_the_dial_holds_its_own_budgets() -> None:
    # 64 images, all right and at one table of 62.5 % computation, and budgets from 40 to 160 %.
    backbone = SmoothPlantedBackbone()
    grid = torch.zeros(64, 3, 4, 4, dtype=torch.uint8)
    records = evaluate_static_table(
        backbone, ImageSet(grid, torch.zeros(64, dtype=torch.int64)), (1, 2), name="table"
    )
    budgets = BudgetRange(lowest=40.0, highest=160.0)
    rewards = budgeted_rewards(records, backbone.costs, budget=1.0, budgets=budgets)
    free = budgeted_rewards(records, backbone.costs, budget=1e9)
    charged = (free - rewards) / RewardWeights.overshoot * 100  # percent above the budget
    preferences = low_discrepancy_preferences(64)
    for stretch in range(8):
        inside = (preferences * 8).long() == stretch
        allowed = [40.0 * 4.0**p for p in preferences[inside].double().tolist()]
        over = max(0.0, 62.5 - sum(allowed) / len(allowed))
        torch.testing.assert_close(
            charged[inside], torch.full((int(inside.sum()),), over, dtype=torch.float64)
        )
    assert float(charged.max()) > 15 > float(charged.min()) == 0.0


@pytest.mark.parametrize(
    ("bits", "budget", "expected"),
    [
        ((0, 2, 4, 32), 2.0, (0.0039, 0.0312)),  # 2 bit everywhere is (2 / 32)²
        ((2, 4, 32), 2.0, (0.0039, 0.0312)),
        ((0, 8, 32), 10.0, (0.0625, 0.5)),
        ((0, 2, 4, 32), 9.0, (0.0039, 0.09)),  # as far as its own budget
    ],
)
def test_the_usual_budgets_begin_at_the_lowest_bits(bits, budget, expected) -> None:
    costs = CostTable(options=BitOptions(bits), layer_macs=(300, 100))
    config = make_config(fixed_budget=False, budget=budget)
    found = budgets_of(config, costs, gate_macs=0.0)
    assert found is not None
    assert (found.lowest / 100, found.highest / 100) == pytest.approx(expected, rel=0.01)
    # What a gate costs is added to both ends, and left out of what the layers may spend.
    with_gate = budgets_of(config, costs, gate_macs=4.0)
    assert with_gate is not None
    assert with_gate.lowest == pytest.approx(found.lowest + 1.0)
    spend = targets(config, costs, gate_macs=4.0)(torch.tensor([0.0], dtype=torch.float64))
    assert float(spend) == pytest.approx(found.lowest / 100)


def test_one_budget_has_one_target_and_no_range() -> None:
    costs = CostTable(options=BitOptions((0, 2, 32)), layer_macs=(300, 100))
    config = make_config(fixed_budget=True, budget=3.0)
    assert budgets_of(config, costs, gate_macs=0.0) is None
    spend = targets(config, costs, gate_macs=4.0)(torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert spend.tolist() == pytest.approx([0.02, 0.02])


def test_budgets_below_the_cheapest_choices_are_refused() -> None:
    costs = CostTable(options=BitOptions((2, 32)), layer_macs=(300, 100))
    config = make_config(fixed_budget=False, budget=1.0, budgets=(0.1, 3.0))
    with pytest.raises(ConfigError, match=r"budget 0.1 % is not enough"):
        targets(config, costs, gate_macs=0.0)
