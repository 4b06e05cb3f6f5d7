"""BlockDrop's gate decides at once what each image needs, holds its budget, and follows the exact gradient of what it earns."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dfs_rl.agents.supervised.blockdrop import (
    BlockDropTrainer,
    bounded_probabilities,
    decide_at_once,
    episode_rewards,
    open_layers,
    run_options,
)
from dfs_rl.agents.supervised.config import BlockDropConfig, SupervisedConfig
from dfs_rl.agents.supervised.reinforce import surrogate
from dfs_rl.data import ImageSet
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.gating.execution import run_stem
from dfs_rl.gating.networks import LearnedGate, OneShotGate
from tests.agents.conftest import PlantedBackbone
from tests.agents.supervised.test_gumbel import BEST_TABLE_ACCURACY, BUDGET, make_task


def make_gate() -> OneShotGate:
    torch.manual_seed(0)
    return OneShotGate((3, 3), PlantedBackbone.options, hidden=16)


def make_trainer(
    gate: LearnedGate, images: ImageSet, *, steps: int = 600, **changes: float
) -> BlockDropTrainer:
    return BlockDropTrainer(
        BlockDropConfig(**changes),
        SupervisedConfig(batch_size=144, learning_rate=0.03),
        make_task(gate, images, backbone=PlantedBackbone(), steps=steps),
    )


def is_solved(gate: LearnedGate, images: ImageSet) -> bool:
    """Whether the gate is far above every table, at no more than a fifth above the budget, where 16 bit is still the best one."""
    backbone = PlantedBackbone()
    records = evaluate_gate(backbone, gate.eval(), images)
    spent = float(records.computation(backbone.costs, "dfs").mean())
    return records.accuracy > BEST_TABLE_ACCURACY + 30 and spent <= 100 * BUDGET * 1.2


def test_it_learns_what_no_table_within_the_budget_can(planted_images: ImageSet) -> None:
    gate = make_gate()
    assert not is_solved(gate, planted_images)
    trainer = make_trainer(gate, planted_images.subset(torch.arange(18).repeat(8)))
    for _ in range(600):
        trainer.step()
    assert is_solved(gate, planted_images)


def gradient_of(loss: Tensor, gate: LearnedGate) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(gate.parameters()))])


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_reinforcement_follows_the_exact_gradient(
    planted_images: ImageSet, baseline: float
) -> None:
    """Of the expected reward through the sum over all sequences; a baseline changes nothing on average."""
    gate, backbone = make_gate(), PlantedBackbone()

    def rewards(images: ImageSet, options: Tensor) -> Tensor:
        answers = run_options(backbone, run_stem(backbone, images.images), options)
        paid = 0.8 * backbone.costs.fractions(options)
        return episode_rewards(answers.argmax(dim=1) == images.labels, paid, penalty=0.5)

    def chances_of(images: ImageSet) -> Tensor:
        logits = decide_at_once(gate, backbone, run_stem(backbone, images.images))
        return bounded_probabilities(logits, 0.8)

    probabilities, expected = chances_of(planted_images), torch.zeros((), dtype=torch.float64)
    for sequence in itertools.product(range(3), repeat=2):
        options = torch.tensor([sequence]).expand(18, -1)
        chance = math.prod(probabilities[:, layer, o] for layer, o in enumerate(sequence))
        expected = expected + (chance * rewards(planted_images, options)).mean()
    exact = gradient_of(-expected, gate)

    repeated = planted_images.subset(torch.arange(18).repeat(200))
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(60):
        probabilities = chances_of(repeated)
        options = torch.multinomial(probabilities.detach().flatten(0, 1), 1, generator=generator)
        options = options.view(-1, 2)
        advantages = (rewards(repeated, options) - baseline)[:, None].expand(-1, 2)
        estimates.append(gradient_of(surrogate(probabilities, options, advantages), gate))
    found = torch.stack(estimates)
    error = found.std(dim=0) / len(found) ** 0.5
    assert float(exact.norm()) > 0.05
    # Five standard errors for each of some hundred weights, and closeness as a whole.
    assert bool(((found.mean(dim=0) - exact).abs() <= 5 * error + 1e-6).all())
    assert float((found.mean(dim=0) - exact).norm() / exact.norm()) < 0.15


def test_chances_are_the_papers_for_two_options_and_bounded_for_more() -> None:
    logits = torch.tensor([[50.0, 0.0], [0.3, -0.2], [-50.0, 0.0]])
    chosen = logits.softmax(dim=1)
    torch.testing.assert_close(
        bounded_probabilities(logits, 0.8), 0.8 * chosen + 0.2 * (1 - chosen)
    )
    many = bounded_probabilities(100 * torch.randn(200, 5), 0.8)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(200))
    assert float(many.min()) >= 0.2 / 4 - 1e-6
    assert float(many.max()) <= 0.8 + 1e-6
    assert bounded_probabilities(torch.zeros(3, 1), 0.8).tolist() == [[1.0]] * 3


def test_layers_open_one_after_the_other() -> None:
    opened = [open_layers(4, progress / 20, curriculum=0.5) for progress in range(20)]
    assert opened == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, *[4] * 10]


def test_layers_that_are_not_open_run_at_their_dearest_option(planted_images: ImageSet) -> None:
    gate = make_gate()
    with torch.no_grad():  # it skips everything
        gate.network[2].bias.copy_(torch.tensor([40.0, 0.0, 0.0] * 2))
    trainer = make_trainer(gate, planted_images, steps=8, curriculum=1.0)
    losses = [trainer.step() for _ in range(8)]
    # With the first layer at its best, images that need nothing of the second are right: a third of them; later a ninth is.
    assert [round(loss.accuracy, 1) for loss in losses] == [33.3] * 4 + [11.1] * 4
    assert [loss.spent for loss in losses] == [0.0] * 8


def test_layers_that_are_not_open_learn_nothing(planted_images: ImageSet) -> None:
    gate = make_gate()
    before = gate.network[2].weight.detach().clone()
    trainer = make_trainer(gate, planted_images, steps=100, curriculum=1.0)
    for _ in range(10):
        trainer.step()
    after = gate.network[2].weight.detach()
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_the_price_follows_what_the_likeliest_options_overspend(planted_images: ImageSet) -> None:
    trainer = make_trainer(make_gate(), planted_images)
    expected = 0.1
    for _ in range(10):
        losses = trainer.step()
        assert losses.multiplier == pytest.approx(expected)
        expected *= math.exp(0.02 * max(-1.0, min(losses.spent - 1.0, 1.0)))


def test_a_loss_that_is_not_finite_stops_in_a_sentence(planted_images: ImageSet) -> None:
    gate = make_gate()
    trainer = make_trainer(gate, planted_images)
    with torch.no_grad():
        next(gate.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="training stopped at step 0: its loss is nan"):
        trainer.step()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"curriculum": 0.0}, "curriculum is 0.0; it must be above 0"),
        ({"penalty": -1.0}, "penalty is -1.0; it must be at least 0"),
        ({"bound": 0.5}, "bound is 0.5; it must be above 0.5"),
        ({"bound": math.nan}, "bound is nan"),
    ],
)
def test_impossible_hyperparameters_are_refused(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        BlockDropConfig(**change)
