"""Train one supernet on several processes as if they were one.

An update sees the batch that a single process would see: the same images, the same augmentation, the same sampled bits. Each
process takes its share of the rows (of the augmented batch: the draws for it are one stream, and cheap). What it computes
enters with the weight of that share, so that the sum over all is the gradient of the whole batch's mean loss, and every
process takes the same step.

Norms use the statistics of the whole batch, not of each process's share as DistributedDataParallel has it. The number of
processes then changes nothing but the order of summation, the same settings fit any number of them, running statistics cannot
drift apart, and the norms of low bits, which are the most sensitive to what they see, do not have to make do with a small
share. The price is one small message per norm, forwards and backwards.

Gradients are added up as one vector when both passes of a step are done. DistributedDataParallel would fit badly: it reduces
at each backward pass, a step has two, and which norms and quantizer steps take part in them changes from step to step.

All of it goes through the default process group of ``torch.distributed``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional

from dfs_rl.backbones.base import Backbone
from dfs_rl.data import ImageSet
from dfs_rl.errors import TrainingError
from dfs_rl.quantization.modules import BatchNormPerBits
from dfs_rl.training.supernet import StepLosses, SupernetTrainer

LEADER = 0


def share_of(n: int, *, rank: int, size: int) -> slice:
    """Rows of a batch of ``n`` that process ``rank`` of ``size`` takes; shares differ by at most one row."""
    return slice(n * rank // size, n * (rank + 1) // size)


class _Statistics(NamedTuple):
    """Of a batch that lies on all processes: mean and biased variance, float32 ``[channels]``, and elements per channel."""

    mean: Tensor
    variance: Tensor
    elements: Tensor


def _shared_statistics(x: Tensor) -> _Statistics:
    """Statistics of all processes' ``x``, ``[batch, channels, h, w]``, from one message.

    The processes' own means and variances are merged (Chan et al., 1979), which loses no digits as sums of squares would.
    """
    channels = x.shape[1]
    samples = _samples(x)
    mean = samples.mean(dim=0)
    variance = (samples - mean).square().mean(dim=0)
    rows = x.new_zeros(
        (distributed.get_world_size(), 2 * channels + 1), dtype=torch.float64
    )  # one row from each process; a sum with zeros gathers them and keeps their bits
    rows[distributed.get_rank(), :channels] = mean
    rows[distributed.get_rank(), channels:-1] = variance
    rows[distributed.get_rank(), -1] = x.numel() // channels
    distributed.all_reduce(rows)
    means, variances, elements = torch.split(rows, [channels, channels, 1], dim=1)
    shares = elements / elements.sum()
    mean = (means * shares).sum(dim=0)
    variance = ((variances + (means - mean).square()) * shares).sum(dim=0)
    return _Statistics(mean.float(), variance.float(), elements.sum())


class _SharedNorm(torch.autograd.Function):
    """Batch norm over all processes' samples; returns the statistics too, without gradient."""

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
        # What the gradient does to the mean and the variance, it does through every sample on every process.
        along, level = (everyones / elements).to(gradient.dtype)
        inputs = (gradient - level - centred * (along * scale)) * (weight * scale)
        n, channels, height, width = x.shape
        images = inputs.reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return images.to(x.dtype), own[0], own[1], None


def _samples(x: Tensor) -> Tensor:
    """Turn ``[batch, channels, h, w]`` into float32 ``[batch * h * w, channels]``, a view where channels come last in memory.

    Sums over its rows take a tenth of the time of sums over three dimensions on a CPU.
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
    """Do what ``torch.nn.functional.batch_norm`` does with the batch that all processes' ``x`` make together.

    Parameters get the gradient of this process's samples, to be added up; the running statistics become the same everywhere.
    """
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    out, mean, variance, elements = _SharedNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        unbiased = variance * (elements / (elements - 1)).to(variance.dtype)
        running_var.lerp_(unbiased, momentum)
    return out  # type: ignore[no-any-return]


@contextmanager
def shared_norms(backbone: Backbone) -> Iterator[None]:
    """Within the block, the norms of ``backbone`` are over all processes' samples, so that all must run it together."""
    layers = [m for m in backbone.modules() if isinstance(m, BatchNormPerBits)]
    for layer in layers:
        layer.batch_norm = shared_batch_norm
    try:
        yield
    finally:
        for layer in layers:
            layer.batch_norm = functional.batch_norm


class _Order(NamedTuple):
    """What the leader asks of the others: to take over a state, to take part in a step, or, with neither, to end."""

    state: dict[str, Tensor] | None = None
    step: tuple[int, int, Tensor] | None = None  # epoch, number and rows


class ParallelTrainer(SupernetTrainer):
    """A trainer on each of several processes that train one backbone; arguments as for ``SupernetTrainer``.

    The process of rank 0 leads: there the trainer is used like any other, and at the end ``dismiss`` is called. The others
    only ``follow``. At the start of each epoch they take over the leader's state, from the first time on, so that what the
    leader saves is the state of all.
    """

    def follow(self) -> None:
        """Take part in whatever the leader does, until it dismisses."""
        self.backbone.train()
        while True:
            order = self._exchange(None)
            if order.state is not None:
                self.restore(order.state, self.position)
            elif order.step is not None:
                with suppress(TrainingError):  # the leader has the same losses, and says so
                    self._train_step(*order.step)
            else:
                return

    def dismiss(self) -> None:
        """Let the others go."""
        self._exchange(_Order())

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        self._exchange(_Order(state={k: v.cpu() for k, v in self.tensors().items()}))

    def _train_step(self, epoch: int, step: int, rows: Tensor) -> StepLosses:
        if distributed.get_rank() == LEADER:
            self._exchange(_Order(step=(epoch, step, rows)))
        return super()._train_step(epoch, step, rows)

    def _backward(
        self, epoch: int, step: int, batch: ImageSet, *, weight: Tensor | None = None
    ) -> StepLosses:
        n = len(batch)
        rows = share_of(n, rank=distributed.get_rank(), size=distributed.get_world_size())
        share = ImageSet(batch.images[rows], batch.labels[rows])
        weight = torch.tensor(len(share) / n, device=self.device)
        with shared_norms(self.backbone):
            own = super()._backward(epoch, step, share, weight=weight)
        return self._add_up(own, weight)

    def _add_up(self, own: StepLosses, weight: Tensor) -> StepLosses:
        """Make every process's gradients the sum over all, and return the mean losses of the whole batch."""
        # The same on all processes: which parameters took part depends on the step alone.
        gradients = [p.grad for p in self.backbone.parameters() if p.grad is not None]
        losses = [loss for loss in own if loss is not None]
        parts = [*gradients, torch.tensor(losses, device=self.device) * weight]
        flat = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(flat)
        *sums, means = torch.split(flat, [part.numel() for part in parts])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        labels, *distillation = means.tolist()
        return StepLosses(labels=labels, distillation=distillation[0] if distillation else None)

    def _exchange(self, order: _Order | None) -> _Order:
        """Tell the others, as the leader, or hear what it says."""
        message = [order]
        distributed.broadcast_object_list(message, src=LEADER)
        return message[0]  # type: ignore[return-value]
