"""Switchable norms: one scale and shift per bit width."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

_MOMENTUM = 0.1


class NormPerBits(nn.Module):
    """Base of the switchable norms: one scale and shift per bit width, in one set or several.

    Quantization moves the statistics of outputs (Jin et al., AdaBits, CVPR 2020), and so do the
    layers that run later (Kang et al., "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS
    2024): further sets are for other modes of the network. All tensors are
    ``[sets * bits, channels]``.
    """

    def __init__(self, channels: int, bits: Sequence[int], *, sets: int, epsilon: float) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.norm_sets = sets
        self.epsilon = epsilon
        rows = sets * len(self.bits)
        self.norm_weight = nn.Parameter(torch.ones(rows, channels))
        self.norm_bias = nn.Parameter(torch.zeros(rows, channels))

    def norm_row(self, bits: int, norm_set: int = 0) -> int:
        """Return the row of the tensors that normalises at ``bits``."""
        return norm_set * len(self.bits) + self.bits.index(bits)

    @torch.no_grad()
    def copy_full_norm(self) -> None:
        """Copy the row of the largest bit width to all others of its set."""
        for tensor in self.state_dict().values():
            sets = tensor.view(self.norm_sets, len(self.bits), -1)
            sets.copy_(sets[:, -1:].expand_as(sets))


class LayerNormPerBits(NormPerBits):
    """Layer norm over the channels of every token (Ba et al., 2016), see ``NormPerBits``."""

    def __init__(self, channels: int, bits: Sequence[int], *, sets: int = 1) -> None:
        super().__init__(channels, bits, sets=sets, epsilon=1e-6)  # as in ViT

    def forward(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Normalise ``[..., channels]`` at ``bits``."""
        i = self.norm_row(bits, norm_set)
        weight, bias = self.norm_weight[i], self.norm_bias[i]
        # Activations of the inference form can be bfloat16.
        return functional.layer_norm(x.float(), weight.shape, weight, bias, self.epsilon)


class BatchNormPerBits(NormPerBits):
    """Batch norm with running statistics per bit width and set too, see ``NormPerBits``."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, bits: Sequence[int], *, sets: int = 1, epsilon: float = 1e-5
    ) -> None:
        super().__init__(channels, bits, sets=sets, epsilon=epsilon)
        self.register_buffer("running_mean", torch.zeros_like(self.norm_bias))
        self.register_buffer("running_var", torch.ones_like(self.norm_weight))
        self.batch_norm: Callable[..., Tensor] = functional.batch_norm
        self._averaged: list[int] | None = None

    def forward(self, x: Tensor, bits: int, norm_set: int = 0) -> Tensor:
        """Normalise ``[batch, channels, ...]`` at ``bits``."""
        i = self.norm_row(bits, norm_set)
        momentum = _MOMENTUM
        if self._averaged is not None:
            self._averaged[i] += 1
            # The k-th batch enters with weight 1 / k: the running mean becomes the mean.
            momentum = 1.0 / self._averaged[i]
        tensors = (self.running_mean, self.running_var, self.norm_weight, self.norm_bias)
        rows = (tensor[i] for tensor in tensors)
        return self.batch_norm(
            x, *rows, training=self.training, momentum=momentum, eps=self.epsilon
        )

    def scale_and_shift(self, bits: int, norm_set: int = 0) -> tuple[Tensor, Tensor]:
        """Return the factor and the addend of evaluation mode, ``[channels]`` each."""
        i = self.norm_row(bits, norm_set)
        scale = self.norm_weight[i] * (self.running_var[i] + self.epsilon).rsqrt()
        return scale, self.norm_bias[i] - self.running_mean[i] * scale

    def average_statistics(self, *, on: bool) -> None:
        """Start or stop making the running statistics the plain average over training passes."""
        self._averaged = [0] * len(self.norm_weight) if on else None


@contextmanager
def other_batch_norms(
    module: nn.Module, make: Callable[[BatchNormPerBits], Callable[..., Tensor]]
) -> Iterator[None]:
    """Let each batch norm of a module normalise with the function that ``make`` returns for it."""
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNormPerBits)]
    for norm in norms:
        norm.batch_norm = make(norm)
    try:
        yield
    finally:
        for norm in norms:
            norm.batch_norm = functional.batch_norm
