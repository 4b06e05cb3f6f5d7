"""Gradient estimators of hard choices: straight-through rollouts and REINFORCE."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.gating.execution import ExecutionState, run_head, run_layer, run_stem
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.observation import observe

Choice = tuple[Tensor, Tensor]
"""Options to run, int64 ``[batch]``, and their relaxation, float32 ``[batch, options]``."""
Estimator = Callable[[Tensor], Choice]
"""Maps logits, ``[batch, options]``, to choices."""


def gumbel_choice(logits: Tensor, *, temperature: float, generator: torch.Generator) -> Choice:
    """Sample choices by the straight-through Gumbel-softmax (Jang et al., ICLR 2017).

    Samples follow the softmax of ``logits``. A relaxation with a lower temperature is closer to
    the samples, with noisier gradients.
    """
    noisy = _perturbed(logits, generator)
    return noisy.argmax(dim=1), (noisy / temperature).softmax(dim=1)


def sampled_choice(logits: Tensor, *, generator: torch.Generator) -> Choice:
    """Sample choices from the softmax, with gradients through the softmax without noise."""
    return _perturbed(logits, generator).argmax(dim=1), logits.softmax(dim=1)


def argmax_choice(logits: Tensor) -> Choice:
    """Choose the largest logit, with gradients through the softmax, as in DFS."""
    return logits.argmax(dim=1), logits.softmax(dim=1)


def _perturbed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gumbel noise, so that the argmax is a sample from the softmax of ``logits``."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    tiny = torch.finfo(uniform.dtype).tiny
    return logits - torch.log(-torch.log(uniform.clamp(min=tiny)) + tiny)


class StraightThroughRollout(NamedTuple):
    """Result of a batch of episodes."""

    logits: Tensor  # float32 [batch, classes]
    spent: Tensor  # cost of the gated layers, a fraction, float64 [batch], with gradients
    options: Tensor  # that ran, int64 [batch, layers]
    probabilities: Tensor  # their relaxation, float32 [batch, layers, options]


def straight_through_rollout(
    backbone: GatedBackbone,
    frozen: GatedBackbone,
    gate: LearnedGate,
    images: Tensor,
    choose: Estimator,
    *,
    preferences: Tensor | None = None,
) -> StraightThroughRollout:
    """Run a batch of images under a gate in training.

    Gradients reach earlier choices through activations and costs, not through the gate's features.
    ``frozen`` is the backbone in inference form. Images are uint8 ``[batch, c, h, w]``, preferences
    float32 ``[batch]``.
    """
    gate.reset(len(images))
    state, relaxed = run_stem(backbone, images), []
    while state.layer < backbone.costs.n_layers:
        with torch.no_grad():
            seen = observe(frozen, state, budget=None, preferences=preferences)
        options, probabilities = choose(gate(seen.features, seen.layer, seen.context))
        state = _straight_through_step(backbone, frozen, state, options, probabilities)
        relaxed.append(probabilities)
    return StraightThroughRollout(
        run_head(backbone, state), state.spent, state.options, torch.stack(relaxed, dim=1)
    )


def _straight_through_step(
    backbone: GatedBackbone,
    frozen: GatedBackbone,
    state: ExecutionState,
    options: Tensor,
    probabilities: Tensor,
) -> ExecutionState:
    """Run the next layer at the chosen options, with gradients of a mixture of all options.

    The value is ``sum_o p_o f_o(h)`` with ``p`` one-hot; its gradient by ``p_o`` is ``f_o(h)``. No
    gradients pass through options that are not chosen, so the inference form computes them.
    Options of probability 0 do not run.
    """
    layer = state.layer
    costs = backbone.costs.option_costs(options.device)[layer]
    after = run_layer(backbone, state, options)
    ghost = probabilities - probabilities.detach()  # zero, but with a gradient
    shape = (-1, *[1] * (after.hidden.dim() - 1))
    hidden = after.hidden
    for option in probabilities.detach().amax(dim=0).nonzero().flatten().tolist():
        with torch.no_grad():
            output = frozen.layers[layer](state.hidden.detach(), backbone.options[option])
        hidden = hidden + ghost[:, option].reshape(shape) * output
    return after._replace(hidden=hidden, spent=after.spent + ghost.double() @ costs)


def reinforce_loss(probabilities: Tensor, options: Tensor, advantages: Tensor) -> Tensor:
    """Return the loss of REINFORCE (Williams, 1992), ``-mean(sum_l log p(option_l) advantage_l)``.

    Options and advantages are ``[batch, layers]``, probabilities ``[batch, layers, options]``.
    """
    drawn = probabilities.gather(2, options[:, :, None]).squeeze(2)  # [batch, layers]
    return -(torch.log(drawn) * advantages.detach()).sum(dim=1).mean()
