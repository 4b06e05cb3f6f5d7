"""Backbone steps under the gate's choices: what learns, from what, and that it repeats."""

import pytest
import torch

from dfs_rl.agents.cotraining import CoTrainer, gated_rollout
from dfs_rl.agents.hyperparameters import CoTrainConfig
from dfs_rl.errors import TrainingError
from dfs_rl.gating.networks import MLPGate
from dfs_rl.training.calibration import calibrate_scales
from tests.helpers.brightness import brightness
from tests.helpers.small_backbone import small_backbone

BITS = (0, 2, 8, 32)


@pytest.fixture
def dataset():
    return brightness()


@pytest.fixture
def backbone(dataset):
    backbone = small_backbone(dataset, bits=BITS).backbone
    calibrate_scales(backbone, dataset.train.images, parts=[backbone])
    return backbone


def gate_for(backbone, option, preference=100.0):
    """Return a gate that prefers one option."""
    gate = MLPGate(backbone.feature_sizes, backbone.options, hidden=4)
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.zero_()
            network[2].bias[option] = preference
    return gate


def cotrainer(backbone, dataset, **settings):
    config = CoTrainConfig(**({"batch_size": 8} | settings))
    return CoTrainer(config, backbone, dataset, seed=0, budget=None)


def norm_biases(backbone):
    """Return the norm biases of 2, 8 and 32 bit in the first convolution."""
    return backbone.layers[0].conv1.norm.norm_bias.detach().clone()


@pytest.mark.parametrize("option", [0, 1, 3])
def test_rollout_of_a_constant_gate(backbone, dataset, option):
    images, gate = dataset.train.images[:6], gate_for(backbone, option)
    logits = gated_rollout(backbone, gate, images, torch.Generator(), budget=None)
    torch.testing.assert_close(logits, backbone(images, BITS[option]))


def test_options_above_the_budget_are_masked(backbone, dataset):
    gate = gate_for(backbone, 3)  # it prefers full precision
    skipped = torch.zeros(1, backbone.costs.n_layers, dtype=torch.int64)
    budget = float(backbone.costs.computation(skipped, gate_macs=gate.macs)) + 1e-6
    images = dataset.train.images[:6]
    logits = gated_rollout(backbone, gate, images, torch.Generator(), budget=budget)
    torch.testing.assert_close(logits, backbone(images, 0))


def test_greedy_rollouts_do_not_sample(backbone, dataset):
    gate, images = gate_for(backbone, 2, preference=0.1), dataset.train.images[:6]

    def run(*, greedy):
        generator = torch.Generator().manual_seed(0)
        return gated_rollout(backbone, gate, images, generator, budget=None, greedy=greedy)

    torch.testing.assert_close(run(greedy=True), backbone(images, BITS[2]))
    assert not torch.allclose(run(greedy=False), run(greedy=True))


@pytest.mark.parametrize(
    ("weights", "changed"),
    [
        ({}, [True, False, True]),
        ({"distillation": 0.0, "full_precision": 0.0}, [True, False, False]),
    ],
)
def test_only_chosen_bits_and_full_precision_learn(backbone, dataset, weights, changed):
    gate, trainer = gate_for(backbone, 1), cotrainer(backbone, dataset, **weights)
    before = norm_biases(backbone)
    statistics = backbone.layers[0].conv1.norm.running_mean.clone()
    losses = trainer.step(gate)
    assert set(losses) == ({"gated"} if weights else {"gated", "divergence", "full"})
    assert (norm_biases(backbone) != before).any(dim=1).tolist() == changed
    assert torch.equal(backbone.layers[0].conv1.norm.running_mean, statistics)
    assert all(parameter.grad is None for parameter in gate.parameters())


def test_frozen_weights_have_no_gradients(backbone, dataset):
    trainer = cotrainer(backbone, dataset)
    with trainer.frozen_weights():
        assert not backbone(dataset.train.images[:2], 8).requires_grad
    assert backbone(dataset.train.images[:2], 8).requires_grad
    assert not any(p.requires_grad for p in backbone.probes.parameters())


def test_equal_passes_have_equal_losses(backbone, dataset):
    trainer = cotrainer(backbone, dataset)
    losses = trainer.step(gate_for(backbone, 3))  # the gate chooses full precision
    assert losses["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert losses["gated"] == pytest.approx(losses["full"], abs=1e-5)
    assert trainer.images_seen == 8


def test_steps_lower_the_gated_loss(backbone, dataset):
    trainer = cotrainer(backbone, dataset, batch_size=32, learning_rate=1e-2)
    gate = gate_for(backbone, 2)
    losses = [trainer.step(gate)["gated"] for _ in range(30)]
    assert losses[0] > 0.9  # an untrained network is at log 3 = 1.1 or worse
    assert sum(losses[-5:]) / 5 < 0.2


def test_steps_repeat_and_resume(backbone, dataset):
    gate = gate_for(backbone, 1)
    start = {name: value.clone() for name, value in backbone.state_dict().items()}
    trainer = cotrainer(backbone, dataset)
    trainer.step(gate)
    middle = {name: value.clone() for name, value in trainer.tensors().items()}
    last = trainer.step(gate)
    end = {name: value.clone() for name, value in backbone.state_dict().items()}

    backbone.load_state_dict(start)
    resumed = cotrainer(backbone, dataset)
    resumed.restore(middle, steps=1)
    assert resumed.step(gate) == last
    assert all(torch.equal(value, end[name]) for name, value in backbone.state_dict().items())


def test_loss_that_is_not_finite_stops(backbone, dataset):
    with torch.no_grad():
        backbone.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="co-training stopped at backbone step 0"):
        cotrainer(backbone, dataset).step(gate_for(backbone, 1))
