"""BlockDrop: one decision on all layers, within its budget, by an unbiased gradient."""

import itertools
import math

import pytest
import torch

from dfs_rl.agents.supervised.blockdrop import (
    BlockDropTrainer,
    bounded_probabilities,
    decide_at_once,
    episode_rewards,
    open_layers,
    run_options,
)
from dfs_rl.agents.supervised.config import BlockDropConfig, BlockDropMethod
from dfs_rl.agents.supervised.estimators import reinforce_loss
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.gating.execution import run_stem
from dfs_rl.gating.networks import OneShotGate
from tests.agents.supervised.test_gumbel import BEST_TABLE_ACCURACY, BUDGET
from tests.helpers.gradients import assert_unbiased, gradient_of
from tests.helpers.planted_task import PlantedBackbone, make_gate_task, planted_images, run_steps

BACKBONE = PlantedBackbone()


def make_gate():
    torch.manual_seed(0)
    return OneShotGate((3, 3), PlantedBackbone.options, hidden=16)


def make_trainer(gate, *, repeats=1, steps=600, **changes):
    images = planted_images().subset(torch.arange(18).repeat(repeats))
    return BlockDropTrainer(
        BlockDropMethod(batch_size=144, learning_rate=0.03),
        make_gate_task(gate, backbone=BACKBONE, images=images, steps=steps),
        blockdrop=BlockDropConfig(**changes),
    )


def is_solved(gate):
    """Return whether the gate is far above every table, within 1.2 times the budget."""
    records = evaluate_gate(BACKBONE, gate.eval(), planted_images())
    spent = float(records.computation(BACKBONE.costs, "dfs").mean())
    return records.accuracy > BEST_TABLE_ACCURACY + 30 and spent <= 100 * BUDGET * 1.2


def test_it_learns_what_no_table_can():
    gate = make_gate()
    assert not is_solved(gate)
    assert is_solved(run_steps(make_trainer(gate, repeats=8), 600))


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_gradient_is_unbiased(baseline):
    """The exact gradient sums over all option patterns; a baseline does not change the mean."""
    gate, images = make_gate(), planted_images()

    def rewards(images, options):
        answers = run_options(BACKBONE, run_stem(BACKBONE, images.images), options)
        paid = 0.8 * BACKBONE.costs.fractions(options)
        return episode_rewards(answers.argmax(dim=1) == images.labels, paid, penalty=0.5)

    def probabilities_of(images):
        logits = decide_at_once(gate, BACKBONE, run_stem(BACKBONE, images.images))
        return bounded_probabilities(logits, 0.8)

    probabilities, expected = probabilities_of(images), torch.zeros((), dtype=torch.float64)
    for pattern in itertools.product(range(3), repeat=2):
        options = torch.tensor([pattern]).expand(18, -1)
        chance = math.prod(probabilities[:, layer, o] for layer, o in enumerate(pattern))
        expected = expected + (chance * rewards(images, options)).mean()
    exact = gradient_of(-expected, gate)

    repeated = images.subset(torch.arange(18).repeat(200))
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(60):
        probabilities = probabilities_of(repeated)
        options = torch.multinomial(probabilities.detach().flatten(0, 1), 1, generator=generator)
        options = options.view(-1, 2)
        advantages = (rewards(repeated, options) - baseline)[:, None].expand(-1, 2)
        estimates.append(gradient_of(reinforce_loss(probabilities, options, advantages), gate))
    assert_unbiased(estimates, exact, tolerance=0.15)


def test_probabilities_are_the_papers_and_bounded():
    logits = torch.tensor([[50.0, 0.0], [0.3, -0.2], [-50.0, 0.0]])
    chosen = logits.softmax(dim=1)
    paper = 0.8 * chosen + 0.2 * (1 - chosen)
    torch.testing.assert_close(bounded_probabilities(logits, 0.8), paper)
    many = bounded_probabilities(100 * torch.randn(200, 5), 0.8)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(200))
    assert float(many.min()) >= 0.2 / 4 - 1e-6
    assert float(many.max()) <= 0.8 + 1e-6
    assert bounded_probabilities(torch.zeros(3, 1), 0.8).tolist() == [[1.0]] * 3


def test_layers_open_one_after_the_other():
    opened = [open_layers(4, progress / 20, curriculum=0.5) for progress in range(20)]
    assert opened == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, *[4] * 10]


def test_closed_layers_run_at_their_largest_option():
    gate = make_gate()
    with torch.no_grad():  # it skips everything
        gate.network[2].bias.copy_(torch.tensor([40.0, 0.0, 0.0] * 2))
    trainer = make_trainer(gate, steps=8, curriculum=1.0)
    losses = [trainer.step() for _ in range(8)]
    # At first a third of the images, which need nothing of the second layer, are right.
    assert [round(loss["accuracy"], 1) for loss in losses] == [33.3] * 4 + [11.1] * 4
    assert [loss["spent"] for loss in losses] == [0.0] * 8


def test_closed_layers_do_not_learn():
    gate = make_gate()
    before = gate.network[2].weight.detach().clone()
    run_steps(make_trainer(gate, steps=100, curriculum=1.0), 10)
    after = gate.network[2].weight.detach()
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_multiplier_follows_the_likeliest_options():
    trainer, expected = make_trainer(make_gate()), 0.1
    for _ in range(10):
        losses = trainer.step()
        assert losses["multiplier"] == pytest.approx(expected)
        expected *= math.exp(0.02 * max(-1.0, min(losses["spent"] - 1.0, 1.0)))
