"""Data-parallel training of a supernet, independent of the number of processes.

An update sees the batch of a single process: each process takes its share of the rows of the
augmented batch, and its gradient is weighted by that share. Norms use the statistics of the whole
batch: only the order of summation depends on the number of processes, and the norms of low bits,
the most sensitive ones, see more than a small share.

Gradients are summed as one vector after both passes of a step. DistributedDataParallel reduces at
each backward pass, a step has two, and the norms and quantizers of a pass change with every step.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from dfs_rl.data import ImageSet
from dfs_rl.errors import TrainingError
from dfs_rl.quantization.norms import other_batch_norms
from dfs_rl.training.supernet import StepLosses, SupernetTrainer

LEADER = 0


def share_of(n: int, *, rank: int, size: int) -> slice:
    """Return the rows of a batch of ``n`` for process ``rank``; shares differ by one at most."""
    return slice(n * rank // size, n * (rank + 1) // size)


def _shared_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and elements per channel of all processes' ``[n, c, h, w]``.

    They take one message. Merging means and variances (Chan et al., 1979) is more accurate than
    sums of squares.
    """
    channels = x.shape[1]
    samples = _samples(x)
    mean = samples.mean(dim=0)
    variance = (samples - mean).square().mean(dim=0)
    # One row from each process; a sum with zeros gathers them exactly.
    size, rank = distributed.get_world_size(), distributed.get_rank()
    rows = x.new_zeros((size, 2 * channels + 1), dtype=torch.float64)
    rows[rank, :channels] = mean
    rows[rank, channels:-1] = variance
    rows[rank, -1] = x.numel() // channels
    distributed.all_reduce(rows)
    means, variances, elements = torch.split(rows, [channels, channels, 1], dim=1)
    shares = elements / elements.sum()
    mean = (means * shares).sum(dim=0)
    variance = ((variances + (means - mean).square()) * shares).sum(dim=0)
    return mean.float(), variance.float(), elements.sum()


class _SharedNorm(torch.autograd.Function):
    """Batch norm over the samples of all processes; also returns the statistics."""

    @staticmethod
    def forward(  # torch types the context as Any
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, elements = _shared_statistics(x)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), elements)
        ctx.mark_non_differentiable(mean, variance, elements)
        out = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return out, mean, variance, elements

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, elements = ctx.saved_tensors
        gradient = _samples(gradients[0])
        centred = _samples(x) - mean
        own = torch.stack([(gradient * centred).sum(dim=0) * scale, gradient.sum(dim=0)])
        everyones = own.clone()
        distributed.all_reduce(everyones)
        # The gradient reaches mean and variance through every sample on every process.
        along, level = (everyones / elements).to(gradient.dtype)
        inputs = (gradient - level - centred * (along * scale)) * (weight * scale)
        n, channels, height, width = x.shape
        images = inputs.reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return images.to(x.dtype), own[0], own[1], None


def _samples(x: Tensor) -> Tensor:
    """Return ``[batch, channels, h, w]`` as float32 ``[batch * h * w, channels]``.

    On a CPU, sums over rows are much faster than sums over three dimensions.
    """
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).float()


def shared_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Run ``torch.nn.functional.batch_norm`` on the joint batch of all processes.

    Parameters get the gradient of this process's samples; running statistics are equal everywhere.
    """
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    results = _SharedNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    out, mean, variance, elements = results
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        unbiased = variance * (elements / (elements - 1)).to(variance.dtype)
        running_var.lerp_(unbiased, momentum)
    return out  # type: ignore[no-any-return]


_Order = dict[str, Tensor] | tuple[int, int, Tensor] | None
"""Message of the leader: load a state, take part in a step, by epoch, number and rows, or end."""


class ParallelTrainer(SupernetTrainer):
    """Trainer of one of several processes; arguments as for ``SupernetTrainer``.

    The process of rank 0 leads: its trainer is used like any other, with a call of ``dismiss`` at
    the end. The others only ``follow``. At the start of each epoch they load the leader's state.
    """

    def follow(self) -> None:
        """Take part in the leader's steps until it dismisses."""
        self.backbone.train()
        while (order := _exchange(None)) is not None:
            if isinstance(order, dict):
                self.restore(order, self.epoch, self.step)
            else:
                with suppress(TrainingError):  # the leader raises the same error
                    self._train_step(*order)

    def dismiss(self) -> None:
        """End ``follow`` on the other processes."""
        _exchange(None)

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        _exchange({k: v.cpu() for k, v in self.tensors().items()})

    def _train_step(self, epoch: int, step: int, rows: Tensor) -> StepLosses:
        if distributed.get_rank() == LEADER:
            _exchange((epoch, step, rows))
        return super()._train_step(epoch, step, rows)

    def _backward(
        self,
        epoch: int,
        step: int,
        batch: ImageSet,
        *,
        weight: Tensor | None = None,
        first: int = 0,
    ) -> StepLosses:
        n = len(batch)
        assert not first, "the whole batch comes in"
        rows = share_of(n, rank=distributed.get_rank(), size=distributed.get_world_size())
        share = ImageSet(batch.images[rows], batch.labels[rows])
        weight = torch.tensor(len(share) / n, device=self.device)
        with other_batch_norms(self.backbone, lambda _: shared_batch_norm):
            own = super()._backward(epoch, step, share, weight=weight, first=rows.start)
        # The same on all processes: the parameters with gradients depend on the step alone.
        gradients = [p.grad for p in self.backbone.parameters() if p.grad is not None]
        losses = [loss for loss in own if loss is not None]
        parts = [*gradients, torch.tensor(losses, device=self.device) * weight]
        flat = torch.cat([part.flatten() for part in parts])  # summed over all processes
        distributed.all_reduce(flat)
        *sums, means = torch.split(flat, [part.numel() for part in parts])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        labels, *distillation = means.tolist()
        return StepLosses(labels=labels, distillation=distillation[0] if distillation else None)


def _exchange(order: _Order) -> _Order:
    """Send the leader's message to all others and return it."""
    message = [order]
    distributed.broadcast_object_list(message, src=LEADER)
    return message[0]
