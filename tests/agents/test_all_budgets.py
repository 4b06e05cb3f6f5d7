"""One gate for all budgets, by reinforcement and by supervision, on the planted task."""

import math

import pytest
import torch

from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.agents.supervised.config import GumbelConfig
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.agents.validation import rewards_of
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.budget_conditioning import N_PREFERENCES, calibrate_budget_conditioning
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.gumbel_training import budgeted_rewards, budgets_of, targets
from dfs_rl.gating.budget_conditioning import (
    BudgetConditioning,
    BudgetRange,
    CostWeightRange,
    low_discrepancy_preferences,
)
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.latencies import made_up_profile
from tests.helpers.planted_task import (
    WEIGHTS,
    SmoothPlantedBackbone,
    gate_of,
    learn,
    make_agent,
    make_gate,
    make_gate_task,
    make_task,
    planted_images,
    run_steps,
)

BACKBONE = SmoothPlantedBackbone()
COSTS = (0.0, 0.125, 0.5)
"""Cost of skipping, 16 and 32 bit at one of the two layers."""
# At 0.25 all needs are worth their cost; at 6 only those that cost less than a sixth.
COST_WEIGHTS = CostWeightRange(lowest=0.25, highest=6.0)
BUDGETS = BudgetRange(lowest=10.0, highest=42.0)
"""The needs of an image cost 0, 1/8 or 1/2 at either layer, 41.7 % on average."""
PREFERENCES = (0.0, 0.5, 1.0)


def accuracy_and_cost(gate, preference):
    images = planted_images()
    preferences = torch.full((len(images),), preference)
    records = evaluate_gate(BACKBONE, gate, images, preferences=preferences)
    return records.accuracy / 100, float(BACKBONE.costs.fractions(records.options).mean())


def regret(gate, preference):
    """Return the best reward, which meets the needs that are worth it, minus the gate's."""
    accuracy, spent = accuracy_and_cost(gate, preference)
    cost_weight = float(COST_WEIGHTS.at(torch.tensor(preference)))
    needs = [a + b for a in COSTS for b in COSTS]
    best = sum(max(0.0, 1.0 - cost_weight * cost) for cost in needs) / len(needs)
    return best - (accuracy - cost_weight * spent)


def test_agent_learns_every_cost_weight():
    weights = RewardWeights(accuracy=1.0, log_likelihood=0.0)
    task = make_task(BACKBONE, reward=weights, cost_weight_range=COST_WEIGHTS)
    config = PPOConfig(batch_size=10**6, learning_rate=0.01)
    model = make_agent(config, task, n_envs=512)
    learn(model, config, 100_000)
    gate = gate_of(model, config, budget_conditioning=BudgetConditioning())
    assert all(-1e-6 <= regret(gate, preference) <= 0.1 for preference in PREFERENCES)
    assert accuracy_and_cost(gate, 1.0)[1] > accuracy_and_cost(gate, 0.0)[1] + 0.3


def test_gumbel_gate_keeps_every_budget():
    gate = make_gate(budget_conditioning=BudgetConditioning())
    assert regret(gate, 1.0) > 0.2
    assert accuracy_and_cost(gate, 1.0)[0] < 0.5
    task = make_gate_task(gate, target=lambda at: BUDGETS.at(at) / 100, steps=600)
    config = GumbelConfig(batch_size=18, learning_rate=0.03, multiplier_learning_rate=0.04)
    run_steps(GumbelTrainer(config, task), 600)
    found = [accuracy_and_cost(gate, preference) for preference in PREFERENCES]
    for (_, spent), budget in zip(found, BUDGETS.at(torch.tensor(PREFERENCES)), strict=True):
        assert 100 * spent <= 1.2 * float(budget)
    accuracies = [accuracy for accuracy, _ in found]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] >= 0.9  # its budget suffices for all needs; a table reaches 4 of 9


def test_calibration_covers_both_ends():
    gate = make_gate(budget_conditioning=BudgetConditioning())
    measured = calibrate_budget_conditioning(BACKBONE, gate, planted_images())
    assert len(measured.computations) >= N_PREFERENCES
    for end, preference in ((0, 0.0), (-1, 1.0)):
        gate.preference = preference
        records = evaluate_gate(BACKBONE, gate, planted_images())
        own = float(records.computation(BACKBONE.costs).mean())
        assert measured.computations[end] == pytest.approx(own)


def test_no_budget_falls_into_a_jump():
    gate = make_gate(hidden=1, budget_conditioning=BudgetConditioning())
    jump = 0.6180339887
    with torch.no_grad():
        for first, _, last in gate.networks:
            first.weight.zero_()
            first.weight[0, -1] = 1.0  # the preference comes last
            first.bias.zero_()
            last.weight.copy_(torch.tensor([[0.0], [-1.0], [1.0]]))
            last.bias.copy_(torch.tensor([-9.0, math.tanh(jump), -math.tanh(jump)]))
    gate.budget_conditioning = calibrate_budget_conditioning(BACKBONE, gate, planted_images())
    low, high = gate.budget_conditioning.budget_range
    assert high > 1.5 * low
    # Halves of an eighth, down to 2^-12.
    assert len(gate.budget_conditioning.computations) == N_PREFERENCES + 9
    for budget in (low, 0.5 * (low + high), 0.999 * high):
        gate.preference = gate.budget_conditioning.preference_for_budget(budget)
        assert gate.preference == pytest.approx(jump, abs=2.0**-12)
        records = evaluate_gate(BACKBONE, gate, planted_images())
        assert float(records.computation(BACKBONE.costs).mean()) == pytest.approx(low)


def test_validation_has_a_cost_weight_per_image():
    records = evaluate_static_table(BACKBONE, planted_images(), (1, 2), name="table")
    rewards = rewards_of(
        records, BACKBONE.costs, WEIGHTS, budget=None, cost_weight_range=COST_WEIGHTS
    )
    for i, preference in enumerate(low_discrepancy_preferences(18).tolist()):
        cost_weight = 6.0 * (0.25 / 6.0) ** preference
        expected = float(records.correct[i]) - cost_weight * (COSTS[1] + COSTS[2])
        assert float(rewards[i]) == pytest.approx(expected, rel=1e-5)


def test_each_bin_of_budgets_bounds_its_mean():
    # 64 images, all right and at one table of 62.5 % computation, and budgets from 40 to 160 %.
    images = ImageSet(torch.zeros(64, 3, 4, 4, dtype=torch.uint8), torch.zeros(64).long())
    records = evaluate_static_table(BACKBONE, images, (1, 2), name="table")
    budgets = BudgetRange(lowest=40.0, highest=160.0)
    rewards = budgeted_rewards(records, BACKBONE.costs, budget=1.0, budgets=budgets)
    free = budgeted_rewards(records, BACKBONE.costs, budget=1e9)
    charged = (free - rewards) / RewardWeights.overshoot * 100  # percent above the budget
    preferences = low_discrepancy_preferences(64)
    for index in range(8):
        inside = (preferences * 8).long() == index
        allowed = [40.0 * 4.0**p for p in preferences[inside].double().tolist()]
        over = max(0.0, 62.5 - sum(allowed) / len(allowed))
        torch.testing.assert_close(charged[inside], torch.full_like(charged[inside], over))
    assert float(charged.max()) > 15 > float(charged.min()) == 0.0


@pytest.mark.parametrize(
    ("bits", "budget", "expected"),
    [
        ((0, 2, 4, 32), 2.0, (0.0039, 0.0312)),  # 2 bit everywhere is (2 / 32)^2
        ((2, 4, 32), 2.0, (0.0039, 0.0312)),
        ((0, 8, 32), 10.0, (0.0625, 0.5)),
        ((0, 2, 4, 32), 9.0, (0.0039, 0.09)),  # extended to its own budget
    ],
)
def test_default_budgets_start_at_the_lowest_bits(bits, budget, expected):
    costs = CostTable(options=BitOptions(bits), layer_macs=(300, 100))
    config = TrainGumbelConfig(budget=budget)
    found = budgets_of(config, costs, gate_macs=0.0)
    assert (found.lowest / 100, found.highest / 100) == pytest.approx(expected, rel=0.01)
    # The gate's cost shifts the range, and leaves the layers what they had.
    assert budgets_of(config, costs, gate_macs=4.0).lowest == pytest.approx(found.lowest + 1.0)
    spend = targets(config, costs, gate_macs=4.0)(torch.tensor([0.0], dtype=torch.float64))
    assert float(spend) == pytest.approx(found.lowest / 100)


@pytest.mark.parametrize(
    ("bits", "expected"), [((0, 8, 32), (12.5, 150.0)), ((8, 32), (60.0, 150.0))]
)
def test_default_budgets_where_low_bits_save_little(bits, expected):
    costs = CostTable(options=BitOptions(bits), layer_macs=(300, 100))
    ms = {0: 0.0, 8: 6.0, 32: 10.0}
    times = made_up_profile(costs, layer=lambda _, bits: ms[bits], stem=1.0, head=1.0)
    config = TrainGumbelConfig(max_accuracy_drop=1.0)
    found = budgets_of(config, costs.with_cost_model("latency", times), gate_macs=0.0)
    assert (found.lowest, found.highest) == pytest.approx(expected)


def test_one_budget_has_one_target():
    costs = CostTable(options=BitOptions((0, 2, 32)), layer_macs=(300, 100))
    config = TrainGumbelConfig(fixed_budget=True, budget=3.0)
    assert budgets_of(config, costs, gate_macs=0.0) is None
    spend = targets(config, costs, gate_macs=4.0)(torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert spend.tolist() == pytest.approx([0.02, 0.02])


def test_budgets_below_the_cheapest_are_refused():
    costs = CostTable(options=BitOptions((2, 32)), layer_macs=(300, 100))
    config = TrainGumbelConfig(budget=1.0, budgets=(0.1, 3.0))
    with pytest.raises(ConfigError, match=r"budget is 0.1 %, too little"):
        targets(config, costs, gate_macs=0.0)
