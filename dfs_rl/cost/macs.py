"""MACs of a module, counted by running it under PyTorch's own counter."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs(run: Callable[[], Tensor]) -> int:
    """Return the multiply-accumulates of the convolutions and matrix products that ``run()`` executes.

    Norms, activations, pooling and additions count nothing, as in the papers this project compares with.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2
