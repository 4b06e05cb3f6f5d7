"""Two processes train as one does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from dfs_rl.backbones import (
    AdaptiveResNet,
    AdaptiveResNetConfig,
    ResNet,
    ResNetConfig,
    VisionTransformer,
    VisionTransformerConfig,
)
from dfs_rl.data import Dataset, channel_statistics
from dfs_rl.errors import TrainingError
from dfs_rl.training.distributed import ParallelTrainer, share_of, shared_batch_norm
from dfs_rl.training.supernet import StepLosses, SupernetConfig, SupernetTrainer

PLAIN = (32,)
MENU = (0, 2, 8, 32)


@pytest.mark.parametrize(("n", "size"), [(7, 1), (7, 2), (7, 3), (7, 7), (128, 5)])
def test_shares_are_even_and_cover_the_batch_in_order(n, size):
    shares = [share_of(n, rank=rank, size=size) for rank in range(size)]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    lengths = {len(range(n)[share]) for share in shares}
    assert max(lengths) - min(lengths) <= 1


class Normalised:
    """What a norm made of a batch, and the gradients that came back through it."""

    def __init__(self, batch_norm: Callable, x: Tensor, gradient: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        weight, bias, mean = torch.randn(3, x.shape[1], generator=generator)
        x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
        self.mean, self.variance = mean.clone(), mean.exp()
        out = batch_norm(
            x, self.mean, self.variance, weight, bias, training=True, momentum=0.1, eps=1e-5
        )
        out.backward(gradient)
        self.out, self.inputs = out.detach(), x.grad
        self.weight, self.bias = weight.grad, bias.grad


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3.0 + torch.randn(5, 3, 4, 6, generator=generator)
    x[:2] += 2.0  # the shares differ
    return x, torch.randn(5, 3, 4, 6, generator=generator)


def _normalise_share() -> Normalised:
    rows = share_of(5, rank=distributed.get_rank(), size=2)
    x, gradient = _batch()
    return Normalised(shared_batch_norm, x[rows], gradient[rows])


def test_shared_norms_are_the_norms_of_the_whole_batch(together):
    whole = Normalised(functional.batch_norm, *_batch())
    first, second = together(_normalise_share)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([first.out, second.out]), whole.out, **close)
    torch.testing.assert_close(torch.cat([first.inputs, second.inputs]), whole.inputs, **close)
    torch.testing.assert_close(first.weight + second.weight, whole.weight, **close)
    torch.testing.assert_close(first.bias + second.bias, whole.bias, **close)
    for part in (first, second):
        torch.testing.assert_close(part.mean, whole.mean, **close)
        torch.testing.assert_close(part.variance, whole.variance, **close)


def make(kind: type, data: Dataset, bits: tuple[int, ...], lr: float = 0.05) -> SupernetTrainer:
    torch.manual_seed(0)
    config = ResNetConfig(
        depth=8,
        width=4,
        in_channels=1,
        n_classes=2,
        image_size=(8, 8),
        bits=bits,
        stem_bits=8 if bits == MENU else 32,
    )
    return kind(
        ResNet(config, channel_statistics(data.train.images)),
        data,
        # 15 images make shares of 7 and 8.
        SupernetConfig(batch_size=15, lr=lr, pad=1, warmup=0.5, precision="float32"),
        epochs=2,
        seed=1,
        device=torch.device("cpu"),
    )


def make_transformer(kind: type, data: Dataset) -> SupernetTrainer:
    torch.manual_seed(0)
    config = VisionTransformerConfig(
        depth=2,
        width=8,
        heads=2,
        patch=2,
        in_channels=1,
        n_classes=2,
        image_size=(8, 8),
        bits=(8, 32),
    )
    return kind(
        VisionTransformer(config, channel_statistics(data.train.images)),
        data,
        SupernetConfig(batch_size=15, pad=1, warmup=0.5, precision="float32"),
        epochs=2,
        seed=1,
        device=torch.device("cpu"),
    )


def steps(trainer: SupernetTrainer, *, leave_after: int | None = None) -> list[StepLosses]:
    losses: list[StepLosses] = []
    while trainer.position.epoch < trainer.epochs:
        for loss in trainer.train_epoch():
            losses.append(loss)
            if len(losses) == leave_after:
                break
    return losses


def _train(
    data: Dataset, bits: tuple[int, ...], leave_after: int | None
) -> tuple[list[StepLosses], dict[str, Tensor]]:
    trainer = make(ParallelTrainer, data, bits)
    losses = []
    if distributed.get_rank() == 0:
        losses = steps(trainer, leave_after=leave_after)
        trainer.dismiss()
    else:
        trainer.follow()
    return losses, trainer.tensors()


def test_two_processes_train_the_network_that_one_trains(together, halves):
    one = make(SupernetTrainer, halves, PLAIN)
    losses = steps(one)
    (both, ours), (_, theirs) = together(_train, halves, PLAIN, None)
    assert [loss.labels for loss in both] == pytest.approx([loss.labels for loss in losses], 1e-4)
    assert ours.keys() == one.tensors().keys()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(ours[name], theirs[name]), name


def _train_transformer(data: Dataset) -> dict[str, Tensor]:
    trainer = make_transformer(ParallelTrainer, data)
    if distributed.get_rank() == 0:
        steps(trainer)
        trainer.dismiss()
    else:
        trainer.follow()
    return trainer.tensors()


def test_two_processes_train_the_transformer_that_one_trains(together, halves):
    """Of which nothing may hang on rounding: AdamW makes full steps of the smallest gradients."""
    one = make_transformer(SupernetTrainer, halves)
    steps(one)
    ours, theirs = together(_train_transformer, halves)
    assert ours.keys() == one.tensors().keys()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=2e-4, msg=name)
        assert torch.equal(ours[name], theirs[name]), name


def _first_gradients(data: Dataset, kind: type) -> dict[str, Tensor]:
    """Of a step with both passes, from the same weights."""
    trainer = make(kind, data, MENU)
    trainer.position = type(trainer.position)(epoch=1, step=0)
    if kind is SupernetTrainer or distributed.get_rank() == 0:
        loss = next(iter(trainer.train_epoch()))
        assert loss.distillation is not None
        if kind is ParallelTrainer:
            trainer.dismiss()
    else:
        trainer.follow()
    named = trainer.backbone.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def _first_adaptive_gradients(data: Dataset, kind: type) -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = AdaptiveResNetConfig(
        blocks=(2, 2),
        width=4,
        in_channels=1,
        n_classes=2,
        image_size=(8, 8),
        bits=(0, 32),
        stem_bits=32,
    )
    trainer = kind(
        AdaptiveResNet(config, channel_statistics(data.train.images)),
        data,
        SupernetConfig(batch_size=15, pad=1, feature_weight=0.5, precision="float32"),
        epochs=1,
        seed=1,
        device=torch.device("cpu"),
        recipe="adn",
    )
    if kind is SupernetTrainer or distributed.get_rank() == 0:
        next(iter(trainer.train_epoch()))
        if kind is ParallelTrainer:
            trainer.dismiss()
    else:
        trainer.follow()
    named = trainer.backbone.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_gradients_of_super_net_and_base_net_add_up_to_those_of_one_process(together, halves):
    whole = _first_adaptive_gradients(halves, SupernetTrainer)
    ours, theirs = together(_first_adaptive_gradients, halves, ParallelTrainer)
    assert ours.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(ours[name], theirs[name]), name


def test_quantized_gradients_add_up_to_those_of_one_process(together, halves):
    whole = _first_gradients(halves, SupernetTrainer)
    ours, theirs = together(_first_gradients, halves, ParallelTrainer)
    assert ours.keys() == whole.keys()
    for name, gradient in whole.items():
        # A value between two codes may fall to the other side: 1 % of the gradient's length.
        assert (ours[name] - gradient).norm() <= 0.01 * gradient.norm() + 1e-6, name
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("leave_after", [2, 6, 8])
def test_an_epoch_may_be_left_and_gone_on_with(together, halves, leave_after):
    (losses, whole), (_, followed) = together(_train, halves, MENU, None)
    assert len(losses) == 12
    (again, ours), (_, theirs) = together(_train, halves, MENU, leave_after)
    assert again == losses
    for name, tensor in whole.items():
        assert torch.equal(tensor, ours[name]), name
        assert torch.equal(tensor, theirs[name]), name
        assert torch.equal(tensor, followed[name]), name


def _diverge(data: Dataset) -> str:
    trainer = make(ParallelTrainer, data, MENU)
    with torch.no_grad():
        trainer.backbone.classifier.bias.fill_(math.nan)
    if distributed.get_rank() != 0:
        trainer.follow()
        return ""
    try:
        steps(trainer)
    except TrainingError as error:
        return str(error)
    finally:
        trainer.dismiss()
    return "it trained"


def test_a_loss_that_is_not_finite_stops_the_leader_with_a_sentence_and_the_others_in_peace(
    together, halves
):
    assert "the loss is no longer finite in epoch 1" in together(_diverge, halves)[0]
