"""One gate for all budgets learns, on the planted task, what each price is worth: by reinforcement and by supervision."""

import pytest
import torch
from stable_baselines3.common.logger import Logger

from agents.algorithms import GateLearning, build_algorithm, entropy_weight
from agents.callbacks import Schedules
from agents.deploy import deploy
from agents.hyperparameters import PPOConfig, SupervisedConfig
from agents.supervised import SupervisedTrainer
from agents.validation import rewards_of
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.data import ImageSet
from dfs_rl.evaluation.dial import POSITIONS, measure_dial
from dfs_rl.evaluation.run_gate import evaluate_gate, evaluate_table
from dfs_rl.gating.dial import Dial, even_positions
from dfs_rl.gating.learned import LayerwiseGate, LearnedGate
from dfs_rl.gating.reward import RewardWeights
from envs.sb3 import SB3GatingVecEnv
from envs.task import Task
from tests.agents.test_supervised import SmoothPlantedBackbone

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.0)
COSTS = (0.0, 0.125, 0.5)
"""Of skipping, 16 and 32 bit at one of the two layers."""
# At 0.25 all needs are worth their cost; at 6 only those are that cost less than a sixth.
DIAL = Dial(lowest=0.25, highest=6.0)
NATS = 5.0
"""What a right answer is worth in cross-entropy, see ``SmoothPlantedBackbone``."""
# Where computation is dear, straight-through gradients mislead on this task: they see part of a debt as part of an answer.
MODEST = Dial(lowest=0.25, highest=2.0)


def best_reward(price: float) -> float:
    """Of a gate that meets an image's needs where that is worth it, and skips everything else."""
    needs = [a + b for a in COSTS for b in COSTS]
    return sum(max(0.0, 1.0 - price * cost) for cost in needs) / len(needs)


def spent_and_regret(
    gate: LearnedGate, dial: Dial, images: ImageSet, position: float
) -> tuple[float, float]:
    """Mean cost with the dial at one position, and by how much the reward, from accuracy and cost, misses the best."""
    backbone = SmoothPlantedBackbone()
    turned = torch.full((len(images),), position)
    records = evaluate_gate(backbone, gate, images, positions=turned)
    price = float(dial.weights(torch.tensor(position)))
    spent = float(backbone.costs.fractions(records.options).mean())
    return spent, best_reward(price) - (records.accuracy / 100 - price * spent)


def by_reinforcement(backbone: WalkableBackbone, images: ImageSet) -> LearnedGate:
    task = Task(
        backbone=backbone,
        images=images,
        weights=WEIGHTS,
        budget=None,
        class_names=("no", "yes"),
        dial=DIAL,
    )
    config = PPOConfig(minibatches=1, learning_rate=0.01)
    learning = GateLearning(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=16,
        images_per_group=8,
        seed=0,
        device="cpu",
    )
    model = build_algorithm(
        config, SB3GatingVecEnv(task, 512, images_per_group=8, seed=0), learning
    )
    model.set_logger(Logger(None, []))
    schedules = Schedules(seed=0, entropy=lambda progress: entropy_weight(config, progress))
    model.learn(100_000, [schedules], log_interval=10**9)
    return deploy(model, backbone.options, feature_macs=0.0, name="gate", dial=DIAL)


def by_supervision(backbone: WalkableBackbone, images: ImageSet) -> LearnedGate:
    torch.manual_seed(0)
    dial = Dial(lowest=NATS * MODEST.lowest, highest=NATS * MODEST.highest)
    gate = LayerwiseGate((3, 3), backbone.options, hidden=16, dial=dial)
    trainer = SupervisedTrainer(
        "gumbel",
        SupervisedConfig(batch_size=18, learning_rate=0.03),
        backbone=backbone,
        frozen=backbone,
        gate=gate,
        images=images,
        target=1.0,
        steps=900,
        seed=0,
    )
    for _ in range(900):
        trainer.step()
    return gate.eval()


def test_reinforcement_learns_at_every_price_what_is_worth_it(planted_images: ImageSet) -> None:
    gate = by_reinforcement(SmoothPlantedBackbone(), planted_images)
    found = [spent_and_regret(gate, DIAL, planted_images, p) for p in (0.0, 0.5, 1.0)]
    assert all(-1e-6 <= regret <= 0.1 for _, regret in found)
    assert found[-1][0] > found[0][0] + 0.3


def test_supervision_learns_it_where_prices_are_modest(planted_images: ImageSet) -> None:
    gate = by_supervision(SmoothPlantedBackbone(), planted_images)
    found = [spent_and_regret(gate, MODEST, planted_images, p) for p in (0.0, 0.5, 1.0)]
    assert all(-1e-6 <= regret <= 0.1 for _, regret in found[1:])
    assert found[-1][0] > found[0][0] + 0.1


def test_an_untrained_gate_does_not(planted_images: ImageSet) -> None:
    torch.manual_seed(0)
    gate = LayerwiseGate((3, 3), SmoothPlantedBackbone.options, hidden=16, dial=DIAL)
    assert spent_and_regret(gate, DIAL, planted_images, 1.0)[1] > 0.2


def test_the_dial_is_measured_from_end_to_end(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    torch.manual_seed(0)
    gate = LayerwiseGate((3, 3), backbone.options, hidden=16, dial=DIAL)
    measured = measure_dial(backbone, gate, planted_images)
    assert (measured.lowest, measured.highest) == (DIAL.lowest, DIAL.highest)
    assert len(measured.computations) == POSITIONS
    for end, position in ((0, 0.0), (-1, 1.0)):
        gate.position = position
        records = evaluate_gate(backbone, gate, planted_images)
        own = float(records.computation(backbone.costs).mean())
        assert measured.computations[end] == pytest.approx(own)


def test_validation_rewards_each_image_at_a_price_of_its_own(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    records = evaluate_table(backbone, planted_images, (1, 2), name="table")
    rewards = rewards_of(records, backbone.costs, WEIGHTS, budget=None, dial=DIAL)
    spent = 0.125 + 0.5  # of two layers' cost, see COSTS
    for i, position in enumerate(even_positions(len(planted_images)).tolist()):
        price = 6.0 * (0.25 / 6.0) ** position
        expected = float(records.correct[i]) - price * spent
        assert float(rewards[i]) == pytest.approx(expected, rel=1e-5)
