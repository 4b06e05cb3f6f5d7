"""BenchmarkSettings of REINFORCE (Williams, 1992), which estimate the gradient of an expected reward."""

from collections.abc import Sequence

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, final: Tensor) -> Tensor:
    """Return the rewards from each layer on plus the final one, ``[batch, layers]``.

    Args:
        rewards: Of each decision, ``[batch, layers]``.
        final: Of the whole episode, ``[batch]``.
    """
    return rewards.flip(1).cumsum(dim=1).flip(1) + final[:, None]


def leave_one_out_advantages(returns: Tensor) -> Tensor:
    """Return each return minus the mean of the other images' at its layer, ``[batch, layers]``.

    The others do not depend on an image's decisions, so the gradient stays unbiased; nothing is
    subtracted from a single image.
    """
    others = len(returns) - 1
    if others == 0:
        return returns
    return returns - (returns.sum(dim=0) - returns) / others


def entropy(probabilities: Tensor, choices: Sequence[int]) -> Tensor:
    """Return the mean over images of the entropy of all their decisions together, in nats.

    Args:
        probabilities: ``[batch, layers, options]``.
        choices: Indices of the allowed options; the others' probabilities are 0, without gradient.
    """
    each: Tensor = torch.special.entr(
        probabilities[:, :, list(choices)]
    )  # [batch, layers, choices]
    return each.sum(dim=(1, 2)).mean()


def surrogate(probabilities: Tensor, options: Tensor, advantages: Tensor) -> Tensor:
    """Return ``-mean(sum_l log p(option_l) advantage_l)``, whose gradient is REINFORCE's.

    Args:
        probabilities: Probabilities of the draws, ``[batch, layers, options]``, with gradients.
        options: What was drawn, int64 ``[batch, layers]``.
        advantages: Of each decision, ``[batch, layers]``, without gradient.
    """
    drawn = probabilities.gather(2, options[:, :, None]).squeeze(2)  # [batch, layers]
    return -(torch.log(drawn) * advantages.detach()).sum(dim=1).mean()
