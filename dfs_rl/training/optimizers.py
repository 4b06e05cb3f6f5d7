"""What backbones are trained with, and how its state goes into a checkpoint and comes out again."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfs_rl.backbones.interfaces import OptimizerName


class Usual(NamedTuple):
    """What an optimizer is usually run with; ``max_norm`` of the gradient, ``None`` for any."""

    lr: float
    weight_decay: float
    max_norm: float | None


USUAL: dict[OptimizerName, Usual] = {
    "sgd": Usual(lr=0.1, weight_decay=5e-4, max_norm=None),
    "adamw": Usual(lr=1e-3, weight_decay=0.05, max_norm=1.0),
}
# What optimizers keep for each parameter, and what checkpoints call it.
_SLOTS = {
    "momentum_buffer": "momentum",
    "exp_avg": "mean",
    "exp_avg_sq": "square",
    "step": "steps",
}


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """Make an optimizer that decays weights, and neither steps, norms nor biases.

    Args:
        name: Which.
        parameters: Parameters with their names; those that are not trained are left out.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Of SGD, which is Nesterov's.
    """
    trained = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n.endswith(".weight")], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if not n.endswith(".weight")], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer keeps, by names for a checkpoint."""
    return {
        f"{_SLOTS[slot]}.{i}": value
        for i, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what ``optimizer_tensors`` returned; other tensors are passed over."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots = {prefix: slot for slot, prefix in _SLOTS.items()}
    for name, value in tensors.items():
        prefix, _, number = name.partition(".")
        if prefix not in slots:
            continue
        parameter = parameters[int(number)]
        like = parameter if value.dim() else value  # a count of steps is one number
        kept = torch.empty_like(like, memory_format=torch.preserve_format)
        optimizer.state[parameter][slots[prefix]] = kept.copy_(value)
