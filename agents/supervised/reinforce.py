"""Terms of REINFORCE (Williams, 1992), which estimates the gradient of an expected reward."""

from collections.abc import Sequence

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, final: Tensor) -> Tensor:
    """Return the sum of rewards from each layer to the end, ``[batch, layers]``.

    Args:
        rewards: Reward of each decision, ``[batch, layers]``.
        final: Reward at the end of the episode, ``[batch]``.
    """
    return rewards.flip(1).cumsum(dim=1).flip(1) + final[:, None]


def leave_one_out_advantages(returns: Tensor) -> Tensor:
    """Return the returns minus the mean return of the other images, ``[batch, layers]``.

    The returns of other images do not depend on an image's decisions, so the gradient stays
    unbiased. A batch of one image has no baseline.

    Args:
        returns: Returns from each layer on, ``[batch, layers]``.
    """
    others = len(returns) - 1
    if others == 0:
        return returns
    return returns - (returns.sum(dim=0) - returns) / others


def entropy(probabilities: Tensor, choices: Sequence[int]) -> Tensor:
    """Return the entropy of an image's decisions, summed over layers and averaged, in nats.

    Args:
        probabilities: Probabilities of the options, ``[batch, layers, options]``.
        choices: Indices of the allowed options; the others have probability 0 and no gradient.
    """
    # one entropy per image, layer and choice: [batch, layers, choices]
    each: Tensor = torch.special.entr(probabilities[:, :, list(choices)])
    return each.sum(dim=(1, 2)).mean()


def surrogate(probabilities: Tensor, options: Tensor, advantages: Tensor) -> Tensor:
    """Return the loss of REINFORCE, ``-mean(sum_l log p(option_l) advantage_l)``.

    Args:
        probabilities: Sampling probabilities, ``[batch, layers, options]``, with gradients.
        options: Sampled options, int64 ``[batch, layers]``.
        advantages: Advantage of each decision, ``[batch, layers]``; gradients are stopped.
    """
    drawn = probabilities.gather(2, options[:, :, None]).squeeze(2)  # [batch, layers]
    return -(torch.log(drawn) * advantages.detach()).sum(dim=1).mean()
