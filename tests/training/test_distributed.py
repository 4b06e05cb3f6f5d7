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


@pytest.mark.parametrize(("n", "size"), [(7, 1), (7, 2), (7, 3), (7, 7), (128, 5)])
def test_shares_are_even_and_cover_the_batch_in_order(n, size):
    shares = [share_of(n, rank=rank, size=size) for rank in range(size)]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    lengths = {len(range(n)[share]) for share in shares}
    assert max(lengths) - min(lengths) <= 1


def normalise(batch_norm: Callable, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Return what a norm makes of a batch, and the gradients that come back through it."""
    generator = torch.Generator().manual_seed(1)
    weight, bias, mean = torch.randn(3, x.shape[1], generator=generator)
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    mean, variance = mean.clone(), mean.exp()
    out = batch_norm(x, mean, variance, weight, bias, training=True, momentum=0.1, eps=1e-5)
    out.backward(gradient)
    gradients = {"inputs": x.grad, "weight": weight.grad, "bias": bias.grad}
    return {"mean": mean, "variance": variance, "out": out.detach(), **gradients}


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3.0 + torch.randn(5, 3, 4, 6, generator=generator)
    x[:2] += 2.0  # the shares differ
    return x, torch.randn(5, 3, 4, 6, generator=generator)


def _normalise_share() -> dict[str, Tensor]:
    rows = share_of(5, rank=distributed.get_rank(), size=2)
    x, gradient = _batch()
    return normalise(shared_batch_norm, x[rows], gradient[rows])


def test_shared_norms_are_the_norms_of_the_whole_batch(together):
    first, second = together(_normalise_share)
    for name, whole in normalise(functional.batch_norm, *_batch()).items():
        parts = first[name], second[name]
        if name in ("mean", "variance"):
            joined = parts
        else:
            joined = (torch.cat(parts) if name in ("out", "inputs") else sum(parts),)
        for ours in joined:
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5, msg=name)


# 15 images make shares of 7 and 8.
SHARED = {"batch_size": 15, "pad": 1, "warmup": 0.5}
RESNET = {"depth": 8, "width": 4, "training": SHARED | {"learning_rate": 0.05}}
NETWORKS = {
    "resnet": (ResNet, RESNET | {"bits": (32,), "stem_bits": 32}),
    "quantized": (ResNet, RESNET | {"bits": (0, 2, 8, 32)}),
    "elastic": (
        ResNet,
        RESNET | {"depth": 14, "bits": (0, 32), "affine_skips": True, "recipe": "elastic"},
    ),
    "transformer": (
        VisionTransformer,
        {"depth": 2, "width": 8, "heads": 2, "patch": 2, "bits": (8, 32), "training": SHARED},
    ),
    "adaptive": (
        AdaptiveResNet,
        {
            "recipe": "adn",
            "training": {"batch_size": 15, "pad": 1, "feature_weight": 0.5},
            "blocks": (2, 2),
            "width": 4,
            "bits": (0, 32),
            "stem_bits": 32,
        },
    ),
}


GRADIENTS = [("quantized", 0.01), ("elastic", 1e-3), ("adaptive", 1e-3)]


def make(name: str, data: Dataset, trainer: type[SupernetTrainer]) -> SupernetTrainer:
    kind, settings = NETWORKS[name]
    return trainer_of(kind, data, epochs=2, trainer=trainer, **settings)


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
    data: Dataset, name: str, leave_after: int | None
) -> tuple[list[StepLosses], dict[str, Tensor]]:
    trainer = make(name, data, ParallelTrainer)
    return together_train(trainer, steps=leave_after), trainer.tensors()


# AdamW makes full steps of the smallest gradients: none may depend on rounding.
@pytest.mark.parametrize(
    ("name", "rtol", "atol"), [("resnet", 1e-3, 1e-4), ("transformer", 1e-2, 2e-4)]
)
def test_two_processes_train_the_network_of_one(together, halves, name, rtol, atol):
    one = make(name, halves, SupernetTrainer)
    losses = train_all(one)
    (both, ours), (_, theirs) = together(_train, halves, name, None)
    assert [loss.labels for loss in both] == pytest.approx([loss.labels for loss in losses], rtol)
    assert ours.keys() == one.tensors().keys()
    for part, tensor in one.tensors().items():
        torch.testing.assert_close(ours[part], tensor, rtol=rtol, atol=atol, msg=part)
        assert torch.equal(ours[part], theirs[part]), part


def _first_gradients(data: Dataset, kind: type, name: str) -> dict[str, Tensor]:
    """Return the gradients of a step with both passes, from the same weights."""
    trainer = make(name, data, kind)
    if name in ("quantized", "elastic"):
        trainer.epoch = 1
    if kind is SupernetTrainer:
        (loss,) = train_all(trainer, steps=1)
        assert loss.distillation is not None
    else:
        together_train(trainer, steps=1)
    named = trainer.backbone.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(("name", "tolerance"), GRADIENTS)
def test_gradients_add_up_to_those_of_one_process(together, halves, name, tolerance):
    whole = _first_gradients(halves, SupernetTrainer, name)
    ours, theirs = together(_first_gradients, halves, ParallelTrainer, name)
    assert ours.keys() == whole.keys()
    for part, gradient in whole.items():
        # A value between two codes may fall to the other side: 1 % of the gradient's length.
        assert (ours[part] - gradient).norm() <= tolerance * gradient.norm() + 1e-6, part
        assert torch.equal(ours[part], theirs[part]), part


def test_an_epoch_can_be_left_and_continued(together, halves):
    (losses, whole), (_, followed) = together(_train, halves, "quantized", None)
    assert len(losses) == 12
    for leave_after in (6, 8):
        (again, ours), (_, theirs) = together(_train, halves, "quantized", leave_after)
        assert again == losses
        for name, tensor in whole.items():
            assert torch.equal(tensor, ours[name]), name
            assert torch.equal(tensor, theirs[name]), name
            assert torch.equal(tensor, followed[name]), name


def _diverge(data: Dataset) -> str:
    trainer = make("quantized", data, ParallelTrainer)
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
