"""SkipNet: skips layers within its budget, by an unbiased gradient."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from dfs_rl.agents.supervised.config import SkipNetConfig, SkipNetMethod
from dfs_rl.agents.supervised.estimators import (
    StraightThroughRollout,
    sampled_choice,
    straight_through_rollout,
)
from dfs_rl.agents.supervised.skipnet import (
    SkipNetTrainer,
    entropy,
    hybrid_loss,
    leave_one_out_advantages,
)
from dfs_rl.costs import BitOptions
from dfs_rl.errors import ConfigError
from tests.helpers.gradients import assert_unbiased, gradient_of
from tests.helpers.planted_task import (
    SmoothPlantedBackbone,
    accuracy_and_spent,
    best_table_accuracy,
    make_gate,
    make_gate_task,
    planted_images,
    run_steps,
)

BACKBONE = SmoothPlantedBackbone()
CHOICES = (0, 2)
# Two thirds of the images need each layer, which costs half of all: two thirds in all.
BUDGET = 0.7
# Within it a table runs one layer, which is enough where the other needs nothing.
BEST_TABLE_ACCURACY = 100 / 3


def make_trainer(gate, *, steps=500, pretraining=0.25):
    return SkipNetTrainer(
        SkipNetMethod(batch_size=18, learning_rate=0.03),
        make_gate_task(gate, budget=BUDGET, steps=steps),
        skipnet=SkipNetConfig(pretraining=pretraining),
    )


def is_solved(gate):
    """Return whether the gate is far above every table, within 1.1 times the budget."""
    accuracy, spent = accuracy_and_spent(gate)
    return accuracy > BEST_TABLE_ACCURACY + 40 and spent <= 100 * BUDGET * 1.1


def test_it_learns_what_no_table_can():
    gate = make_gate(choices=CHOICES)
    assert not is_solved(gate)
    assert is_solved(run_steps(make_trainer(gate), 500))


def test_best_table_is_as_stated():
    assert best_table_accuracy(CHOICES, BUDGET) == pytest.approx(BEST_TABLE_ACCURACY)


PENALTIES = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.1, 0.6]], dtype=torch.float64)
"""A skip earns 0.9 at layer 0 and 0.6 at layer 1."""


def exact_gradient(gate):
    """Return the gradient of minus the expected reward, by a sum over all patterns."""
    images, expected = planted_images(), torch.zeros(())
    for pattern in itertools.product(CHOICES, repeat=2):
        forced = iter(pattern)

        def choose(logits):
            option = torch.full((len(logits),), next(forced))  # noqa: B023 - called in this pass
            return option, logits.softmax(dim=1)

        rollout = straight_through_rollout(BACKBONE, BACKBONE, gate, images.images, choose)
        chance = math.prod(rollout.probabilities[:, layer, o] for layer, o in enumerate(pattern))
        skipped = sum(float(PENALTIES[i, 2]) for i, option in enumerate(pattern) if option == 0)
        error = functional.cross_entropy(rollout.logits.detach(), images.labels, reduction="none")
        expected = expected + (chance * (skipped - error)).mean()
    return gradient_of(-expected, gate)


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_gradient_is_unbiased(kind):
    gate = make_gate(kind, choices=CHOICES)
    images = planted_images().subset(torch.arange(18).repeat(200))
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(40):
        rollout = straight_through_rollout(
            BACKBONE,
            BACKBONE,
            gate,
            images.images,
            lambda logits: sampled_choice(logits, generator=generator),
        )
        supervised = functional.cross_entropy(rollout.logits, images.labels)
        loss = hybrid_loss(rollout, images.labels, option_penalties=PENALTIES) - supervised
        estimates.append(gradient_of(loss, gate))
    assert_unbiased(estimates, exact_gradient(gate), tolerance=0.1)


def test_reinforce_uses_returns_to_go():
    """Two images, two layers: the loss by hand, from rewards after each decision."""
    logits = torch.zeros(2, 2)  # equal classes: a cross-entropy of log 2 for both
    options = torch.tensor([[0, 2], [2, 2]])
    probabilities = torch.tensor(
        [[[0.5, 0.0, 0.5], [0.25, 0.0, 0.75]], [[0.2, 0.0, 0.8], [0.5, 0.0, 0.5]]]
    )
    rollout = StraightThroughRollout(logits, torch.zeros(2), options, probabilities)
    loss = hybrid_loss(rollout, torch.tensor([0, 1]), option_penalties=PENALTIES)
    # Image 0 skips layer 0 and earns 0.9 there; after layer 0 both images earn the same.
    reinforce = -0.9 * (math.log(0.5) - math.log(0.8)) / 2
    assert float(loss) == pytest.approx(math.log(2) + reinforce)
    returns = torch.tensor([[6.0, 5.0, 3.0], [11.0, 11.0, 11.0]])
    assert leave_one_out_advantages(returns).tolist() == [[-5.0, -6.0, -8.0], [5.0, 6.0, 8.0]]
    assert leave_one_out_advantages(returns[:1]).tolist() == returns[:1].tolist()


def test_multiplier_rests_in_pretraining():
    gate = make_gate(choices=CHOICES)
    trainer, expected = make_trainer(gate, steps=20, pretraining=0.5), 0.1
    for step in range(20):
        losses = trainer.step()
        assert losses["multiplier"] == pytest.approx(expected if step >= 10 else 0.0)
        if step >= 10:
            expected *= math.exp(0.02 * max(-1.0, min(losses["spent"] - 1.0, 1.0)))


def test_entropy_bonus_falls_linearly(monkeypatch):
    trainer, losses = make_trainer(make_gate(choices=CHOICES), steps=4, pretraining=0.9), []
    monkeypatch.setattr(trainer, "_descend", lambda loss: losses.append(float(loss.detach())))
    bonuses = [trainer.step()["labels"] - losses[-1] for _ in range(4)]
    # The untrained gate has nearly even odds of two choices at both layers.
    even = 0.3 * 2 * math.log(2)
    assert bonuses == pytest.approx([even, even * 0.75, even * 0.5, even * 0.25], rel=0.02)


@pytest.mark.parametrize(("bits", "missing"), [((0, 2, 8), 32), ((2, 8, 32), 0)])
def test_bit_options_without_skip_or_run(bits, missing):
    with pytest.raises(ConfigError, match=rf"bit options \[.*\] lack {missing} bit"):
        SkipNetMethod.choices(BitOptions(bits))
    assert SkipNetMethod.choices(BitOptions((0, 2, 32))) == (0, 2)


def test_entropy_has_finite_gradients():
    logits = torch.tensor([[[0.0, -torch.inf, 0.0], [0.0, -torch.inf, 1.0]]], requires_grad=True)
    bonus = entropy(logits.softmax(dim=2), CHOICES)
    chance = 1 / (1 + math.e)
    second = -chance * math.log(chance) - (1 - chance) * math.log(1 - chance)
    assert bonus.item() == pytest.approx(math.log(2) + second)
    (gradient,) = torch.autograd.grad(bonus, logits)
    assert bool(gradient.isfinite().all())
