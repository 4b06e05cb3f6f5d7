"""Optimizers of backbones and their default settings."""

from collections.abc import Iterable

import torch
from torch import nn

from dfs_rl.utils.constants import OptimizerName

USUAL: dict[OptimizerName, tuple[float, float, float | None]] = {
    "sgd": (0.1, 5e-4, None),
    "adamw": (1e-3, 0.05, 1.0),
}
"""Default learning rate, weight decay and maximum norm of the gradient of an optimizer."""


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """Make an optimizer with weight decay on weights but not on quantizer scales, norms and biases.

    Parameters without gradients are left out. ``momentum`` is the Nesterov momentum of SGD.
    """
    trained = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n.endswith(".weight")], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if not n.endswith(".weight")], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
