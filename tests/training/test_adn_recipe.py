"""The recipe of adaptive-depth networks: gradient, learning, steps shared with the supernet's."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from dfs_rl.backbones import AdaptiveResNet
from dfs_rl.costs import BitOptions
from dfs_rl.data import Dataset
from dfs_rl.training.bit_sampling import sample_student_mix
from dfs_rl.training.supernet import SupernetTrainer
from tests.helpers.halves import train_all, trainer_of

PLAIN, BIT_OPTIONS = (0, 32), (0, 2, 8, 32)


def trainer(
    halves: Dataset, *, bits: tuple[int, ...] = PLAIN, epochs: int = 8, **training: object
) -> SupernetTrainer:
    return trainer_of(
        AdaptiveResNet,
        halves,
        epochs=epochs,
        recipe="adn",
        training={"lr": 0.05, **training},
        blocks=(2, 2),
        width=4,
        bits=bits,
        stem_bits=32 if bits == PLAIN else 8,
    )


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("feature_weight", [0.0, 0.7])
def test_a_step_has_the_gradient_of_both_nets(halves, alpha, feature_weight):
    # A batch that is the whole split, not augmented, has the same loss in any order.
    still = replace(halves, flip=False)
    training = trainer(still, batch_size=96, alpha=alpha, feature_weight=feature_weight)
    net = copy.deepcopy(training.backbone).train()
    for _ in training.train_epoch():
        pass

    def both(bits):
        hidden, leaving = net.stem(halves.train.images), []
        for stage in net.layers:
            hidden = stage(hidden, bits)
            leaving.append(hidden)
        return net.head(hidden), leaving

    whole, theirs = both(32)
    base, ours = both(0)
    teacher = whole.detach().softmax(dim=1)
    loss = (1 - alpha) * functional.kl_div(
        base.log_softmax(dim=1), teacher, reduction="batchmean"
    ) + alpha * functional.cross_entropy(whole, halves.train.labels)
    for a, b in zip(ours, theirs, strict=True):
        loss = loss + (1 - alpha) * feature_weight * (a - b.detach()).square().mean() / 2
    loss.backward()
    compared = 0
    for (name, p), q in zip(training.backbone.named_parameters(), net.parameters(), strict=True):
        if p.requires_grad and p.numel():
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)
            compared += 1
    assert compared > 20


def test_the_base_net_teaches_the_path_nothing(halves):
    training = trainer(halves, alpha=1e-12)  # labels hardly count, distillation is all there is
    for _ in itertools.islice(training.train_epoch(), 1):
        pass
    gradients = dict(training.backbone.named_parameters())
    assert gradients["blocks.0.path.0.conv1.weight"].grad.abs().max() < 1e-9
    mandatory = gradients["blocks.0.mandatory.0.conv1.weight"].grad
    assert mandatory.abs().max() > 1e-6
    norms = gradients["blocks.0.mandatory.0.conv1.norm.norm_weight"].grad.abs().amax(dim=1)
    assert norms[1] > 1e-6 > norms[0]


def test_the_end_measures_the_norms_of_both_modes(halves):
    training = trainer(halves, bits=BIT_OPTIONS, epochs=1)
    train_all(training)
    for name, buffer in training.backbone.named_buffers():
        if "running" in name:
            buffer.fill_(1e6)  # must leave no trace
    measured = dict(training.finish().named_buffers())
    sets = measured["blocks.1.mandatory.0.conv2.norm.running_mean"]
    assert all(tensor.max() < 1e3 for name, tensor in measured.items() if "running" in name)
    assert (sets[0] - sets[1]).abs().max() > 1e-3


def test_new_quantizers_leave_the_base_net_unchanged(halves):
    training = trainer(halves, bits=BIT_OPTIONS, epochs=2, warmup=0.5)
    for loss in training.train_epoch():
        assert loss.distillation is not None  # from the first step on
    before = {n: p.clone() for n, p in training.backbone.named_parameters()}
    next(training.train_epoch())
    after = dict(training.backbone.named_parameters())
    scale = "quantizers.weight_log_scale"
    path = f"blocks.0.path.0.conv1.{scale}"
    # One step moves learned values a little; calibration would set those of the path anew.
    assert (after[path] - before[path]).abs().min() > 0.1
    for name in (f"conv1.{scale}", "conv1.norm.norm_weight", "conv1.norm.norm_bias"):
        full = f"blocks.0.mandatory.0.{name}"
        assert (after[full] - before[full]).abs().max() < 0.1, name


def test_half_of_the_mixes_are_the_base_net():
    options = BitOptions(BIT_OPTIONS)

    def draw(n: int, **how: object) -> list[tuple[int, ...] | None]:
        generator = torch.Generator().manual_seed(0)
        return [sample_student_mix(options, 4, generator, **how) for _ in range(n)]  # type: ignore[arg-type]

    assert set(draw(50, recipe="adn", quantized=False)) == {(0, 0, 0, 0)}
    assert set(draw(50, recipe="supernet", quantized=False)) == {None}
    drawn = draw(2000, recipe="adn", quantized=True)
    # A random mix skips all of four layers in one of 256 draws.
    assert drawn.count((0, 0, 0, 0)) / 2000 == pytest.approx(0.5 + 0.25 / 256, abs=0.035)
    assert drawn.count((2, 2, 2, 2)) / 2000 == pytest.approx(0.125, abs=0.03)
