"""SkipNet's gate learns which layers an image can skip, holds its budget, and its reinforcement follows the exact gradient."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.agents.hyperparameters import GateKind
from dfs_rl.agents.supervised.config import SkipNetConfig, SupervisedConfig
from dfs_rl.agents.supervised.reinforce import entropy, leave_one_out_advantages, returns_to_go
from dfs_rl.agents.supervised.skipnet import SkipNetTrainer, hybrid_loss, skip_or_run
from dfs_rl.agents.supervised.straight_through import (
    Choice,
    sampled_choice,
    straight_through_rollout,
)
from dfs_rl.costs import BitOptions
from dfs_rl.data import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate
from tests.agents.supervised.test_gumbel import SmoothPlantedBackbone, make_task

CHOICES = (0, 2)
# Two thirds of the images need each layer, which costs half of all: what both need comes to two thirds.
BUDGET = 0.7
# Within it no table runs both layers, and one is enough where the other needs nothing.
BEST_TABLE_ACCURACY = 100 / 3


def make_gate(kind: GateKind) -> LearnedGate:
    torch.manual_seed(0)
    made = {"ff": MLPGate, "lstm": LSTMGate}[kind]
    return made((3, 3), SmoothPlantedBackbone.options, hidden=16, choices=CHOICES)


def make_trainer(
    gate: LearnedGate, images: ImageSet, *, steps: int = 500, pretraining: float = 0.25
) -> SkipNetTrainer:
    return SkipNetTrainer(
        SkipNetConfig(pretraining=pretraining),
        SupervisedConfig(batch_size=18, learning_rate=0.03),
        make_task(gate, images, budget=BUDGET, steps=steps),
    )


def is_solved(gate: LearnedGate, images: ImageSet) -> bool:
    """Whether the gate is far above every table, at no more than a tenth above the budget."""
    backbone = SmoothPlantedBackbone()
    records = evaluate_gate(backbone, gate.eval(), images)
    spent = float(records.computation(backbone.costs, "dfs").mean())
    assert set(records.options.flatten().tolist()) <= set(CHOICES)
    return records.accuracy > BEST_TABLE_ACCURACY + 40 and spent <= 100 * BUDGET * 1.1


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_it_learns_what_no_table_within_the_budget_can(
    planted_images: ImageSet, kind: GateKind
) -> None:
    gate = make_gate(kind)
    assert not is_solved(gate, planted_images)
    trainer = make_trainer(gate, planted_images)
    for _ in range(500):
        trainer.step()
    assert is_solved(gate, planted_images)


def test_the_best_table_within_the_budget_is_as_stated(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    within = [
        records.accuracy
        for table in itertools.product(CHOICES, repeat=2)
        for records in [evaluate_static_table(backbone, planted_images, table, name="table")]
        if float(records.computation(backbone.costs, "dfs").mean()) <= 100 * BUDGET
    ]
    assert max(within) == pytest.approx(BEST_TABLE_ACCURACY)


PRICES = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.1, 0.6]], dtype=torch.float64)
"""What skipping gives away: nothing; so it earns 0.9 at layer 0 and 0.6 at layer 1."""


def gradient_of(loss: Tensor, gate: LearnedGate) -> Tensor:
    gradients = torch.autograd.grad(loss, list(gate.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.flatten()
            for g, p in zip(gradients, gate.parameters(), strict=True)
        ]
    )


def exact_gradient(gate: LearnedGate, images: ImageSet) -> Tensor:
    """Of minus the expected reward, through the sum over all sequences of choices."""
    backbone = SmoothPlantedBackbone()
    expected = torch.zeros(())
    for sequence in itertools.product(CHOICES, repeat=2):
        forced = iter(sequence)

        def choose(logits: Tensor) -> Choice:
            option = torch.full((len(logits),), next(forced))  # noqa: B023 - called in this pass alone
            return Choice(option, logits.softmax(dim=1))

        rollout = straight_through_rollout(backbone, backbone, gate, images.images, choose)
        chance = math.prod(rollout.probabilities[:, layer, o] for layer, o in enumerate(sequence))
        skipped = sum(
            float(PRICES[layer, 2]) for layer, option in enumerate(sequence) if option == 0
        )
        error = functional.cross_entropy(rollout.logits.detach(), images.labels, reduction="none")
        expected = expected + (chance * (skipped - error)).mean()
    return gradient_of(-expected, gate)


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_reinforcement_follows_the_exact_gradient(planted_images: ImageSet, kind: GateKind) -> None:
    gate, backbone = make_gate(kind), SmoothPlantedBackbone()
    repeated = torch.arange(18).repeat(200)
    images = planted_images.subset(repeated)
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(40):
        rollout = straight_through_rollout(
            backbone,
            backbone,
            gate,
            images.images,
            lambda logits: sampled_choice(logits, generator=generator),
        )
        supervised = functional.cross_entropy(rollout.logits, images.labels)
        loss = hybrid_loss(rollout, images.labels, option_penalties=PRICES) - supervised
        estimates.append(gradient_of(loss, gate))
    found = torch.stack(estimates)
    error = found.std(dim=0) / len(found) ** 0.5
    exact = exact_gradient(gate, planted_images)
    assert float(exact.norm()) > 0.05
    # Five standard errors for each of some hundred weights, and closeness as a whole.
    assert bool(((found.mean(dim=0) - exact).abs() <= 5 * error + 1e-6).all())
    assert float((found.mean(dim=0) - exact).norm() / exact.norm()) < 0.1


def test_returns_count_what_a_decision_can_still_change() -> None:
    rewards, final = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]]), torch.tensor([-1.0, 3.0])
    returns = returns_to_go(rewards, final)
    assert returns.tolist() == [[6.0, 5.0, 3.0], [11.0, 11.0, 11.0]]
    assert leave_one_out_advantages(returns).tolist() == [[-5.0, -6.0, -8.0], [5.0, 6.0, 8.0]]
    assert leave_one_out_advantages(returns[:1]).tolist() == returns[:1].tolist()


def test_the_price_rests_while_supervised_and_follows_overspending_then(
    planted_images: ImageSet,
) -> None:
    trainer = make_trainer(make_gate("ff"), planted_images, steps=20, pretraining=0.5)
    expected = 0.1
    for step in range(20):
        losses = trainer.step()
        assert losses.multiplier == pytest.approx(expected if step >= 10 else 0.0)
        if step >= 10:
            expected *= math.exp(0.02 * max(-1.0, min(losses.spent - 1.0, 1.0)))


@pytest.mark.parametrize(("menu", "missing"), [((0, 2, 8), 32), ((2, 8, 32), 0)])
def test_a_menu_without_both_options_is_refused(menu: tuple[int, ...], missing: int) -> None:
    with pytest.raises(ConfigError, match=rf"menu \[.*\] lacks {missing} bit"):
        skip_or_run(BitOptions(menu))
    assert skip_or_run(BitOptions((0, 2, 32))) == (0, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pretraining": -0.1}, "pretraining is -0.1; it must be at least 0"),
        ({"pretraining": 1.0}, "pretraining is 1.0; it must be below 1"),
        ({"pretraining": math.nan}, "pretraining is nan; it must be finite"),
        ({"ent_coef": -1.0}, "ent_coef is -1.0; it must be at least 0"),
        ({"ent_coef": math.inf}, "ent_coef is inf; it must be finite"),
    ],
)
def test_impossible_hyperparameters_are_refused(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SkipNetConfig(**change)


def test_entropy_has_a_gradient_where_choices_are_missing() -> None:
    logits = torch.tensor([[[0.0, -torch.inf, 0.0], [0.0, -torch.inf, 1.0]]], requires_grad=True)
    bonus = entropy(logits.softmax(dim=2), CHOICES)
    chance = 1 / (1 + math.e)
    second = -chance * math.log(chance) - (1 - chance) * math.log(1 - chance)
    assert bonus.item() == pytest.approx(math.log(2) + second)
    (gradient,) = torch.autograd.grad(bonus, logits)
    assert bool(gradient.isfinite().all())
