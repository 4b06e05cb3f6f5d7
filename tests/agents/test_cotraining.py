"""Backbone steps under the gate's choices: what learns, from what, and that it repeats."""

import pytest
import torch
from torch import Tensor

from dfs_rl.agents.cotraining import CoTrainer, gated_rollout
from dfs_rl.agents.cotraining_config import CoTrainConfig
from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.data import Dataset, ImageSet, channel_statistics
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.gating.networks import MLPGate
from dfs_rl.training.calibration import calibrate_scales

BITS = (0, 2, 8, 32)


@pytest.fixture
def dataset() -> Dataset:
    """Two classes told apart by their brightness."""
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> ImageSet:
        labels = torch.arange(n) % 2
        pixels = (
            torch.randint(100, (n, 1, 8, 8), generator=generator)
            + 150 * labels[:, None, None, None]
        )
        return ImageSet(images=pixels.to(torch.uint8), labels=labels)

    splits = {name: images(40) for name in ("train", "agent", "val", "test")}
    return Dataset(name="brightness", class_names=("dark", "light"), flip=True, **splits)


@pytest.fixture
def backbone(dataset: Dataset) -> ResNet:
    torch.manual_seed(0)
    config = ResNetConfig(
        depth=8, width=4, in_channels=1, n_classes=2, image_size=(8, 8), bits=BITS
    )
    backbone = ResNet(config, channel_statistics(dataset.train.images)).eval()
    calibrate_scales(backbone, dataset.train.images, parts=[backbone])
    return backbone


def gate_for(backbone: ResNet, option: int) -> MLPGate:
    """A gate that always chooses the same option."""
    gate = MLPGate(backbone.feature_sizes, backbone.options, hidden=4)
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.fill_(-100.0)
            network[2].bias[option] = 100.0
    return gate


@pytest.mark.parametrize("option", [0, 1, 3])
def test_a_walk_under_a_constant_gate_is_the_plain_pass(
    backbone: ResNet, dataset: Dataset, option: int
) -> None:
    images = dataset.train.images[:6]
    walked = gated_rollout(
        backbone, gate_for(backbone, option), images, torch.Generator(), budget=None
    )
    torch.testing.assert_close(walked, backbone(images, BITS[option]))


def test_options_beyond_the_budget_are_not_drawn(backbone: ResNet, dataset: Dataset) -> None:
    gate = gate_for(backbone, 3)  # it wants full precision
    skipped = torch.zeros(1, backbone.costs.n_layers, dtype=torch.int64)
    budget = float(backbone.costs.computation(skipped, gate_macs=gate.macs)) + 1e-6
    images = dataset.train.images[:6]
    generator = torch.Generator().manual_seed(0)
    walked = gated_rollout(backbone, gate, images, generator, budget=budget)
    torch.testing.assert_close(walked, backbone(images, 0))


def test_a_greedy_walk_takes_the_likeliest_options_and_a_drawn_one_takes_others_as_well(
    backbone: ResNet, dataset: Dataset
) -> None:
    gate = gate_for(backbone, 2)
    with torch.no_grad():
        for network in gate.networks:
            network[2].bias.copy_(torch.tensor([0.0, 0.0, 0.1, 0.0]))
    images = dataset.train.images[:6]
    walks = [
        gated_rollout(
            backbone,
            gate,
            images,
            torch.Generator().manual_seed(0),
            budget=None,
            greedy=greedy,
        )
        for greedy in (True, False)
    ]
    torch.testing.assert_close(walks[0], backbone(images, BITS[2]))
    assert not torch.allclose(walks[1], walks[0])


def test_without_weight_the_full_precision_pass_is_left_out(
    backbone: ResNet, dataset: Dataset
) -> None:
    config = CoTrainConfig(batch_size=8, distillation=0.0, full_precision=0.0)
    trainer = CoTrainer(config, backbone, dataset, seed=0, budget=None)
    before = backbone.layers[0].conv1.norm.norm_bias.detach().clone()
    prepared = trainer.prepare_step(gate_for(backbone, 1))
    assert prepared.losses == (pytest.approx(float(prepared.loss.detach())), None, None)
    trainer.step(gate_for(backbone, 1))
    changed = (backbone.layers[0].conv1.norm.norm_bias.detach() != before).any(dim=1)
    assert changed.tolist() == [True, False, False]


def test_a_resting_backbone_takes_no_gradients(backbone: ResNet, dataset: Dataset) -> None:
    trainer = CoTrainer(CoTrainConfig(), backbone, dataset, seed=0, budget=None)
    with trainer.frozen_weights():
        assert not backbone(dataset.train.images[:2], 8).requires_grad
    assert backbone(dataset.train.images[:2], 8).requires_grad
    assert not any(p.requires_grad for p in backbone.probes.parameters())


def test_losses_are_those_of_torch_and_the_divergence_of_equal_passes_is_zero(
    backbone: ResNet, dataset: Dataset
) -> None:
    trainer = CoTrainer(CoTrainConfig(batch_size=8), backbone, dataset, seed=0, budget=None)
    losses = trainer.step(gate_for(backbone, 3))  # the gate chooses full precision
    assert losses.divergence == pytest.approx(0.0, abs=1e-5)
    assert losses.gated == pytest.approx(losses.full, abs=1e-5)
    assert trainer.images_seen == 8


def test_only_norms_of_the_chosen_bits_and_of_full_precision_learn(
    backbone: ResNet, dataset: Dataset
) -> None:
    trainer = CoTrainer(CoTrainConfig(batch_size=8), backbone, dataset, seed=0, budget=None)
    conv = backbone.layers[0].conv1
    before = conv.norm.norm_bias.detach().clone()  # [bits that run, channels]: 2, 8, 32
    statistics = conv.norm.running_mean.clone()
    trainer.step(gate_for(backbone, 1))  # 2 bit
    changed = (conv.norm.norm_bias.detach() != before).any(dim=1)
    assert changed.tolist() == [True, False, True]
    assert torch.equal(conv.norm.running_mean, statistics)


def test_steps_under_the_gate_lower_its_loss(backbone: ResNet, dataset: Dataset) -> None:
    config = CoTrainConfig(batch_size=32, learning_rate=1e-2)
    trainer = CoTrainer(config, backbone, dataset, seed=0, budget=None)
    gate = gate_for(backbone, 2)
    losses = [trainer.step(gate).gated for _ in range(30)]
    # An untrained network is at log 2 = 0.69 or worse.
    assert losses[0] > 0.5
    assert sum(losses[-5:]) / 5 < 0.2


def test_the_gate_takes_no_gradient(backbone: ResNet, dataset: Dataset) -> None:
    gate = gate_for(backbone, 1)
    CoTrainer(CoTrainConfig(batch_size=8), backbone, dataset, seed=0, budget=None).step(gate)
    assert all(parameter.grad is None for parameter in gate.parameters())


def test_steps_repeat_and_resume(backbone: ResNet, dataset: Dataset) -> None:
    gate = gate_for(backbone, 1)
    config = CoTrainConfig(batch_size=8)
    start = {name: value.clone() for name, value in backbone.state_dict().items()}
    trainer = CoTrainer(config, backbone, dataset, seed=0, budget=None)
    trainer.step(gate)
    middle = {name: value.clone() for name, value in trainer.tensors().items()}
    last = trainer.step(gate)
    end = {name: value.clone() for name, value in backbone.state_dict().items()}

    backbone.load_state_dict(start)
    resumed = CoTrainer(config, backbone, dataset, seed=0, budget=None)
    resumed.restore(middle, steps=1)
    assert resumed.step(gate) == last
    assert_equal(backbone.state_dict(), end)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_loss_not_finite_stops_with_a_sentence(backbone: ResNet, dataset: Dataset) -> None:
    trainer = CoTrainer(CoTrainConfig(batch_size=8), backbone, dataset, seed=0, budget=None)
    with torch.no_grad():
        backbone.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="co-training stopped at backbone step 0"):
        trainer.step(gate_for(backbone, 1))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 0; it must be at least 1"):
        CoTrainConfig(batch_size=0)
    with pytest.raises(ConfigError, match=r"distillation is -1"):
        CoTrainConfig(distillation=-1.0)
