"""REINFORCE (Williams, 1992) over walks: the terms whose gradients estimate that of an expected reward."""

from collections.abc import Sequence

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, final: Tensor) -> Tensor:
    """Return what each decision can still change: the rewards from its layer on and the final one, ``[batch, layers]``.

    Args:
        rewards: Of each decision, ``[batch, layers]``.
        final: Of the whole walk, ``[batch]``.
    """
    return rewards.flip(1).cumsum(dim=1).flip(1) + final[:, None]


def above_the_others(returns: Tensor) -> Tensor:
    """Return by how much each return, ``[batch, layers]``, exceeds the mean of the other images' at its layer.

    The others do not depend on an image's decisions, so the gradient stays unbiased; of one image alone nothing is subtracted.
    """
    others = len(returns) - 1
    if others == 0:
        return returns
    return returns - (returns.sum(dim=0) - returns) / others


def entropy(chances: Tensor, choices: Sequence[int]) -> Tensor:
    """Return the mean over images of the entropy of all their decisions together, in nats.

    Args:
        chances: ``[batch, layers, options]``.
        choices: Indices of the options that may be chosen; the chances of the others are 0 and would have no gradient.
    """
    each: Tensor = torch.special.entr(chances[:, :, list(choices)])  # [batch, layers, choices]
    return each.sum(dim=(1, 2)).mean()


def surrogate(chances: Tensor, options: Tensor, advantages: Tensor) -> Tensor:
    """Return what falls where the expected reward rises: minus the mean over images of ``sum_l log p(option_l) advantage_l``.

    Args:
        chances: Those that the options were drawn by, ``[batch, layers, options]``; gradients flow through them.
        options: What was drawn, int64 ``[batch, layers]``.
        advantages: What each decision was worth, ``[batch, layers]``; a constant to the gradient.
    """
    drawn = chances.gather(2, options[:, :, None]).squeeze(2)  # [batch, layers]
    return -(torch.log(drawn) * advantages.detach()).sum(dim=1).mean()
