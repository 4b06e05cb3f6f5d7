"""MACs of a module, counted by running it under PyTorch's own counter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


@torch.no_grad()
def count_macs(run: Callable[[], Tensor]) -> int:
    """Return the multiply-accumulates of the convolutions and matrix products of ``run()``.

    Distances count like products; norms, activations, pooling and additions count nothing, as in
    the literature. Attention counts both of its products however it is written, and in full under
    any mask.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_PASSED_OVER)
    counter.mod_tracker = _NoTracker()
    with split_encoders(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops()) // 2


class _NoTracker(ModuleTracker):
    """Tracks nothing: torch's hooks fail on views of parameters without gradients."""

    def __enter__(self) -> "_NoTracker":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def split_encoders() -> Iterator[None]:
    """Disable the fused evaluation operator of torch's attention and encoder layers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=fused)


def _vector_flops(first: torch.Size, _: torch.Size, **__: object) -> int:
    """Count a matrix, or a vector, times a vector."""
    return 2 * prod(first)


def _lstm_flops(
    x: torch.Size, inputs: torch.Size, state: torch.Size, *_: object, **__: object
) -> int:
    """Count one layer of an LSTM in one direction; x is ``[steps, batch, features]``."""
    return 2 * x[0] * x[1] * (prod(inputs) + prod(state))


def _added_flops(_: torch.Size, first: torch.Size, second: torch.Size, **__: object) -> int:
    """Count a product that is added to something: of matrices, or of a matrix and a vector."""
    return 2 * prod(first) * prod(second[2:])


def _distance_flops(first: torch.Size, second: torch.Size, *_: object, **__: object) -> int:
    """Count the distances between rows of two matrices, as many as their product takes."""
    return 2 * prod(first) * second[-2]


def _bilinear_flops(first: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """Count every weight once for each row."""
    return 2 * first[0] * prod(weight)


# Operators that torch's counter does not know on a CPU.
_PASSED_OVER = {
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten.dot: _vector_flops,
    torch.ops.aten.addmv: _added_flops,
    torch.ops.aten.addbmm: _added_flops,
    torch.ops.aten._cdist_forward: _distance_flops,
    torch.ops.aten._euclidean_dist: _distance_flops,
    torch.ops.aten._trilinear: _bilinear_flops,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
}
