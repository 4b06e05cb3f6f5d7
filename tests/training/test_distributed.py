"""Two processes train as one does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from dfs_rl.backbones import AdaptiveResNet, ResNet, VisionTransformer
from dfs_rl.data import Dataset
from dfs_rl.errors import TrainingError
from dfs_rl.training.distributed import ParallelTrainer, share_of, shared_batch_norm
from dfs_rl.training.supernet import StepLosses, SupernetTrainer
from tests.helpers.halves import train_all, trainer_of

PLAIN = (32,)
BIT_OPTIONS = (0, 2, 8, 32)


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


# 15 images make shares of 7 and 8.
SHARED = {"batch_size": 15, "pad": 1, "warmup": 0.5}


def resnet(kind: type, data: Dataset, bits: tuple[int, ...]) -> SupernetTrainer:
    shape = {"depth": 8, "width": 4, "bits": bits, "stem_bits": 8 if bits == BIT_OPTIONS else 32}
    return trainer_of(ResNet, data, epochs=2, trainer=kind, training=SHARED | {"lr": 0.05}, **shape)


def transformer(kind: type, data: Dataset) -> SupernetTrainer:
    shape = {"depth": 2, "width": 8, "heads": 2, "patch": 2, "bits": (8, 32)}
    return trainer_of(VisionTransformer, data, epochs=2, trainer=kind, training=SHARED, **shape)


def adaptive(kind: type, data: Dataset) -> SupernetTrainer:
    return trainer_of(
        AdaptiveResNet,
        data,
        epochs=1,
        recipe="adn",
        trainer=kind,
        training={"batch_size": 15, "pad": 1, "feature_weight": 0.5},
        blocks=(2, 2),
        width=4,
        bits=(0, 32),
        stem_bits=32,
    )


def together_train(trainer: SupernetTrainer, *, steps: int | None = None) -> list[StepLosses]:
    """Lead or follow until the end, or up to a number of steps."""
    if distributed.get_rank() != 0:
        trainer.follow()
        return []
    try:
        losses = train_all(trainer, steps=steps)
        return losses if steps == 1 else losses + train_all(trainer)
    finally:
        trainer.dismiss()


def _train(
    data: Dataset, bits: tuple[int, ...], leave_after: int | None
) -> tuple[list[StepLosses], dict[str, Tensor]]:
    trainer = resnet(ParallelTrainer, data, bits)
    return together_train(trainer, steps=leave_after), trainer.tensors()


def test_two_processes_train_the_network_of_one(together, halves):
    one = resnet(SupernetTrainer, halves, PLAIN)
    losses = train_all(one)
    (both, ours), (_, theirs) = together(_train, halves, PLAIN, None)
    assert [loss.labels for loss in both] == pytest.approx([loss.labels for loss in losses], 1e-4)
    assert ours.keys() == one.tensors().keys()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(ours[name], theirs[name]), name


def _train_transformer(data: Dataset) -> dict[str, Tensor]:
    trainer = transformer(ParallelTrainer, data)
    together_train(trainer)
    return trainer.tensors()


def test_two_processes_train_the_transformer_of_one(together, halves):
    # AdamW makes full steps of the smallest gradients: none may depend on rounding.
    one = transformer(SupernetTrainer, halves)
    train_all(one)
    ours, theirs = together(_train_transformer, halves)
    assert ours.keys() == one.tensors().keys()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=2e-4, msg=name)
        assert torch.equal(ours[name], theirs[name]), name


def _first_gradients(data: Dataset, kind: type, name: str) -> dict[str, Tensor]:
    """Return the gradients of a step with both passes, from the same weights."""
    trainer = resnet(kind, data, BIT_OPTIONS) if name == "quantized" else adaptive(kind, data)
    if name == "quantized":
        trainer.position = type(trainer.position)(epoch=1, step=0)
    if kind is SupernetTrainer:
        (loss,) = train_all(trainer, steps=1)
        assert loss.distillation is not None
    else:
        together_train(trainer, steps=1)
    named = trainer.backbone.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(("name", "tolerance"), [("quantized", 0.01), ("adaptive", 1e-3)])
def test_gradients_add_up_to_those_of_one_process(together, halves, name, tolerance):
    whole = _first_gradients(halves, SupernetTrainer, name)
    ours, theirs = together(_first_gradients, halves, ParallelTrainer, name)
    assert ours.keys() == whole.keys()
    for part, gradient in whole.items():
        # A value between two codes may fall to the other side: 1 % of the gradient's length.
        assert (ours[part] - gradient).norm() <= tolerance * gradient.norm() + 1e-6, part
        assert torch.equal(ours[part], theirs[part]), part


@pytest.mark.parametrize("leave_after", [6, 8])
def test_an_epoch_can_be_left_and_continued(together, halves, leave_after):
    (losses, whole), (_, followed) = together(_train, halves, BIT_OPTIONS, None)
    assert len(losses) == 12
    (again, ours), (_, theirs) = together(_train, halves, BIT_OPTIONS, leave_after)
    assert again == losses
    for name, tensor in whole.items():
        assert torch.equal(tensor, ours[name]), name
        assert torch.equal(tensor, theirs[name]), name
        assert torch.equal(tensor, followed[name]), name


def _diverge(data: Dataset) -> str:
    trainer = resnet(ParallelTrainer, data, BIT_OPTIONS)
    with torch.no_grad():
        trainer.backbone.classifier.bias.fill_(math.nan)
    try:
        together_train(trainer)
    except TrainingError as error:
        return str(error)
    return ""


def test_a_loss_that_is_not_finite_stops_all_processes(together, halves):
    stopped, followed = together(_diverge, halves)
    assert "the loss is no longer finite in epoch 1" in stopped
    assert followed == ""
