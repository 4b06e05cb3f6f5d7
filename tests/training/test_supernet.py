"""Supernet training: it learns, it resumes exactly, and it stops with a sentence."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.optim import SGD, AdamW

from dfs_rl.backbones import (
    AdaptiveMobileNet,
    AdaptiveResNet,
    AdaptiveSwin,
    Backbone,
    ResNet,
    VisionTransformer,
)
from dfs_rl.backbones.interfaces import run_layers
from dfs_rl.data import Dataset, ImageSet, epoch_batches
from dfs_rl.errors import ConfigError, TrainingError
from dfs_rl.quantization import QuantRange, mse_scale
from dfs_rl.training.bit_sampling import sample_low_mix, sample_student_mixes
from dfs_rl.training.mixed_batch import run_parts
from dfs_rl.training.supernet import SupernetTrainer, learning_rate
from dfs_rl.training.supernet_config import SupernetConfig
from dfs_rl.utils.seeding import torch_generator
from tests.helpers.halves import train_all, trainer_of

ADAPTIVE = {"recipe": "adn", "blocks": (2, 2), "width": 4, "bits": (0, 32), "stem_bits": 32}
LOW_BITS = ADAPTIVE | {"bits": (0, 2, 8, 32), "stem_bits": 8}
ELASTIC = {"depth": 14, "width": 3, "bits": (0, 2, 8, 32), "affine_skips": True}
VIT = {"width": 12, "heads": 2, "patch": 2, "depth": 2, "bits": (2, 8, 32)}
SWIN = {"blocks": (3, 2), "width": 8, "heads": 2, "patch": 2, "bits": (0, 4, 32)}
# A network, its shape, epochs, and learning rate.
NETWORKS = {
    "resnet": (ResNet, {"depth": 8, "width": 4, "bits": (0, 2, 8, 32)}, 6, 0.05),
    "elastic": (ResNet, ELASTIC | {"recipe": "elastic"}, 14, 0.05),
    "adaptive": (AdaptiveResNet, ADAPTIVE, 8, 0.05),
    "adaptive blocks": (AdaptiveResNet, ADAPTIVE | {"granularity": "block"}, 8, 0.05),
    "adaptive low bits": (AdaptiveResNet, LOW_BITS, 12, 0.05),
    "vit": (VisionTransformer, VIT, 10, 0.005),
    "swin": (AdaptiveSwin, SWIN | {"recipe": "adn"}, 16, 0.003),
}


def trainer(
    halves: Dataset,
    name: str = "resnet",
    *,
    epochs: int | None = None,
    shape: dict | None = None,
    **training: object,
) -> SupernetTrainer:
    kind, usual_shape, usual_epochs, rate = NETWORKS[name]
    training = {"learning_rate": rate, "calibration_rounds": 2} | training
    shape = usual_shape | (shape or {})
    return trainer_of(kind, halves, epochs=epochs or usual_epochs, training=training, **shape)


def accuracies(backbone: Backbone, images: ImageSet, mixes: list) -> list[float]:
    """Return the accuracy of one inference form at each mix, in percent."""
    frozen = backbone.to_inference()
    with torch.inference_mode():
        stem = frozen.stem(images.images)
        logits = [frozen.head(run_layers(frozen, stem, mix)) for mix in mixes]
    return [100.0 * float((each.argmax(dim=1) == images.labels).float().mean()) for each in logits]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mix_works_only_after_training(halves, name):
    training = trainer(halves, name)
    net = training.backbone
    assert isinstance(training.optimizer, SGD if "resnet" in net.family else AdamW)
    mixes = list(net.meaningful_bits)
    if name.startswith("adaptive"):
        mixes = list(itertools.product(net.meaningful_bits, repeat=len(net.layers)))
    if name == "resnet":
        mixes.append((2, 32, 8))
    assert max(accuracies(training.snapshot(), halves.val, mixes)) < 80.0  # 50 is chance
    train_all(training)
    if name == "elastic":
        for depths in ((1, 1, 1), (2, 1, 2), (1, 2, 1)):
            mixes += [net.at_depths(depths, bits) for bits in net.meaningful_bits]
    backbone = training.finish()
    assert min(accuracies(backbone, halves.val, mixes)) > 95.0
    assert (backbone.feature_std != 1).any()


def test_elastic_steps_run_half_of_the_images_again(halves):
    training = trainer(halves, "elastic", shape={"bits": (0, 32)}, feature_weight=0.0)
    epoch = training.warmup_epochs
    training.epoch = epoch
    training._begin_epoch()
    net, batch = copy.deepcopy(training.backbone), halves.train.subset(torch.arange(22))
    losses = training._backward(epoch, 0, batch)

    whole, *_, nested, scattered = sample_student_mixes(
        net, torch_generator(training.seed, "setting", epoch, 0), recipe="elastic", quantized=True
    )
    logits = net.head(run_layers(net, net.stem(batch.images), 32))
    labels = functional.cross_entropy(logits, batch.labels)
    images = torch.cat([batch.images, batch.images[::4], batch.images[1::4]])
    mixes, sizes = [whole, nested, scattered], [22, 6, 6]
    *_, hidden = run_parts(net, net.stem(images), mixes, sizes)
    target = logits.detach().softmax(dim=1)
    target = torch.cat([target, target[::4], target[1::4]])
    distances = -(target * net.head(hidden).log_softmax(dim=1)).sum(dim=1)
    (labels + distances.sum() / 22).backward()
    assert losses == pytest.approx((labels.item(), distances.mean().item()), rel=1e-5)
    for ours, naive in zip(training.backbone.parameters(), net.parameters(), strict=True):
        if naive.grad is not None:
            torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "epochs", "stops"),
    [
        ("resnet", 4, (3, 6, 15)),  # in the warm-up, at its end and after it
        ("elastic", 3, (9,)),
        ("adaptive", 3, (3,)),
        ("adaptive low bits", 3, (15,)),
        ("vit", 3, (4,)),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(halves, name, epochs, stops):
    whole, losses, saved = trainer(halves, name, epochs=epochs), [], {}
    while whole.epoch < epochs:
        for loss in whole.train_epoch():
            losses.append(loss)
            if len(losses) in stops:
                tensors = {name: tensor.clone() for name, tensor in whole.tensors().items()}
                saved[len(losses)] = tensors, whole.epoch, whole.step
    for steps, checkpoint in saved.items():
        resumed = trainer(halves, name, epochs=epochs)
        resumed.restore(*checkpoint)
        assert train_all(resumed) == losses[steps:]
        for part, tensor in whole.tensors().items():
            assert torch.equal(tensor, resumed.tensors()[part]), part


def test_without_full_precision_scales_fit_at_once(halves):
    training = trainer(halves, shape={"bits": (0, 2, 8)})
    for block in training.backbone.layers:
        for layer in (block.conv1, block.conv2):
            expected = mse_scale(layer.weight.detach(), QuantRange.of(8, signed=True))
            scale = layer.quantizers.weight_scale(8, layer.weight).detach()
            torch.testing.assert_close(scale, expected)


def test_without_a_warm_up_scales_fit_at_the_start(halves):
    shape = {"width": 8, "bits": (0, 4, 32), "recipe": "adn", "training": {"learning_rate": 1e-9}}
    training = trainer_of(AdaptiveMobileNet, halves, epochs=3, **shape)
    backbone = training.backbone
    next(training.train_epoch())
    last = backbone.layers[-1].path[0]
    entered = []
    last.register_forward_pre_hook(lambda _, args: entered.append(args[0].detach()))
    backbone.train()(halves.train.images, 32)
    expected = mse_scale(entered[0], QuantRange.of(4, signed=True))
    scale = last.convolutions[0].quantizers.input_scale(4).detach()
    torch.testing.assert_close(scale, expected, rtol=0.05, atol=0.0)


def test_the_warm_up_runs_the_largest_option_alone(halves):
    training = trainer(halves, epochs=4, warmup=0.5)
    kinds = []
    while training.epoch < 4:
        kinds.append({loss.distillation is None for loss in training.train_epoch()})
    assert kinds == [{True}, {True}, {False}, {False}]


RECIPES = {
    "supernet": ("resnet", {"feature_weight": None}, 1.0, 1.0),
    "supernet features": ("resnet", {"feature_weight": 0.7}, 1.0, 1.0),
    "adn": ("adaptive", {"feature_weight": 0.0, "alpha": 0.5}, 0.5, 0.5),
    "adn features": ("adaptive", {"feature_weight": 0.7, "alpha": 0.2}, 0.2, 0.8),
    "adn stages": ("adaptive blocks", {"feature_weight": 0.7, "alpha": 0.2}, 0.2, 0.8),
}


@pytest.mark.parametrize(
    ("name", "training", "label_weight", "soft_weight"), RECIPES.values(), ids=RECIPES
)
def test_a_step_has_the_gradient_of_both_passes(halves, name, training, label_weight, soft_weight):
    # A batch that is the whole split, not augmented, has the same loss in any order.
    still = replace(halves, flip=False)
    usual = {"batch_size": 96, "warmup": 0.0}
    # A stage of four blocks has a path of two, each a layer of its own.
    changes = {"blocks": (4, 2)} if name == "adaptive blocks" else {}
    training = trainer(still, name, shape=changes, **(usual | training))
    for _ in training.train_epoch():
        pass  # one step, at a learning rate of 0
    net = copy.deepcopy(training.backbone)
    net.zero_grad()
    mix, ends = (0,) * len(net.layers), range(len(net.layers))
    if name == "adaptive blocks":
        ends = (1, 2)  # of the stages
    if name == "resnet":
        mix = sample_low_mix(net.options, 3, torch_generator(1, "setting", 0, 0))
    # In the same order: sums in another one move values across the border between two codes.
    (rows,) = epoch_batches(96, 96, seed=1, epoch=0)
    batch = halves.train.subset(rows)

    def run_at(mix):
        hidden, leaving = net.stem(batch.images), []
        for layer, bits in zip(net.layers, mix, strict=True):
            hidden = layer(hidden, bits)
            leaving.append(hidden)
        return net.head(hidden), leaving

    whole, theirs = run_at((32,) * len(mix))
    low, ours = run_at(mix)
    teacher = whole.detach().softmax(dim=1)
    loss = label_weight * functional.cross_entropy(whole, batch.labels)
    distance = functional.kl_div(low.log_softmax(dim=1), teacher, reduction="batchmean")
    weight = training.config.feature_weight or 0.0
    for i in ends:
        apart = (ours[i] - theirs[i].detach()).square().mean()
        distance = distance + weight * apart / len(ends)
    (loss + soft_weight * distance).backward()
    compared = 0
    for (name, p), q in zip(training.backbone.named_parameters(), net.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)
            compared += 1
    assert compared > 10


def test_the_base_net_teaches_the_path_nothing(halves):
    training = trainer(halves, "adaptive", alpha=1e-12)  # no labels
    next(training.train_epoch())
    gradients = dict(training.backbone.named_parameters())
    assert gradients["blocks.0.path.0.conv1.weight"].grad.abs().max() < 1e-9
    mandatory = gradients["blocks.0.mandatory.0.conv1.weight"].grad
    assert mandatory.abs().max() > 1e-6
    norms = gradients["blocks.0.mandatory.0.conv1.norm.norm_weight"].grad.abs().amax(dim=1)
    assert norms[1] > 1e-6 > norms[0]


def test_the_end_measures_the_norms_of_both_modes(halves):
    training = trainer(halves, "adaptive low bits", epochs=2)
    for name, buffer in training.backbone.named_buffers():
        if "running" in name:
            buffer.fill_(1e6)  # must leave no trace
    measured = dict(training.finish().named_buffers())
    sets = measured["blocks.1.mandatory.0.conv2.norm.running_mean"]
    assert all(tensor.max() < 1e3 for name, tensor in measured.items() if "running" in name)
    assert (sets[0] - sets[1]).abs().max() > 1e-3


def test_new_quantizers_leave_the_base_net_unchanged(halves):
    training = trainer(halves, "adaptive low bits", epochs=2, warmup=0.5)
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


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("float32", r"in epoch 1 after step 0; a lower learning rate than 0\.05 may help"),
        ("bfloat16", r"than 0\.05, or training\.precision float32 may help"),
    ],
)
def test_a_loss_not_finite_stops_with_a_sentence(halves, precision, advice):
    training = trainer(halves, precision=precision)
    with torch.no_grad():
        training.backbone.classifier.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=f"the loss is no longer finite .*{advice}"):
        train_all(training)


def test_scales_beyond_float32_stop_with_a_sentence(halves):
    training = trainer(halves)
    with torch.no_grad():
        training.backbone.layers[0].conv2.quantizers.input_log_scale[0] = 200.0
    with pytest.raises(TrainingError, match=r"input_log_scale is no longer finite in epoch 1"):
        training.snapshot()


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_wild_learning_rate_ends_in_a_sentence(halves, lr):
    training = trainer(halves, learning_rate=lr, epochs=3)

    def train_and_look() -> None:
        train_all(training)
        training.snapshot()

    with pytest.raises(TrainingError, match="may help"):
        train_and_look()


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 0.0), (0.025, 0.1), (0.05, 0.2), (0.525, 0.1), (1.0, 0.0)]
)
def test_the_schedule_rises_and_falls_to_zero(progress, rate):
    assert learning_rate(progress, peak=0.2) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 1.5}, "warmup is 1.5; it must be at most 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"pad": -1}, "pad is -1"),
        ({"calibration_rounds": 0}, "calibration_rounds is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"feature_weight": -1.0}, "feature_weight is -1.0; it must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SupernetConfig(**changes)


def test_batches_larger_than_the_data_are_refused(halves):
    with pytest.raises(
        ConfigError,
        match=r"training\.batch_size is 200; the train split has only 96 images, so allowed",
    ):
        trainer(halves, batch_size=200)
