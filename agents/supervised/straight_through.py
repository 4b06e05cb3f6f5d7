"""Episodes whose hard choices pass gradients to the gate, for training by supervision."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.gating.execution import ExecutionState, option_costs, run_head, run_layer, run_stem
from dfs_rl.gating.observation import observe


class Choice(NamedTuple):
    """One choice per image.

    Attributes:
        options: What is run, int64 ``[batch]``.
        probabilities: What gradients flow through instead, float32 ``[batch, options]``; rows sum
            to 1.
    """

    options: Tensor
    probabilities: Tensor


Estimator = Callable[[Tensor], Choice]
"""Turns logits, ``[batch, options]``, into choices."""


def gumbel_choice(logits: Tensor, *, temperature: float, generator: torch.Generator) -> Choice:
    """Draw by the straight-through Gumbel-softmax (Jang et al., ICLR 2017).

    Args:
        logits: ``[batch, options]``; the draws follow their softmax.
        temperature: Of the softmax that gradients flow through, above 0; low is closer to the draw,
            with noisier gradients.
        generator: Draws the noise.
    """
    noisy = _perturbed(logits, generator)
    return Choice(noisy.argmax(dim=1), (noisy / temperature).softmax(dim=1))


def sampled_choice(logits: Tensor, *, generator: torch.Generator) -> Choice:
    """Draw by the softmax and let gradients flow through it, without noise.

    Args:
        logits: ``[batch, options]``.
        generator: Draws.
    """
    return Choice(_perturbed(logits, generator).argmax(dim=1), logits.softmax(dim=1))


def argmax_choice(logits: Tensor) -> Choice:
    """Take the largest logit, with gradients through the softmax, without noise, as DFS does."""
    return Choice(logits.argmax(dim=1), logits.softmax(dim=1))


def _perturbed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gumbel noise, with which the largest of ``logits`` is a draw from their softmax."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    tiny = torch.finfo(uniform.dtype).tiny
    return logits - torch.log(-torch.log(uniform.clamp(min=tiny)) + tiny)


class TrainableGate(Protocol):
    """A gate that returns logits."""

    def reset(self, batch_size: int) -> None:
        """Begin a walk."""
        ...

    def __call__(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, ``[batch, options]``."""
        ...


class StraightThroughRollout(NamedTuple):
    """Result of a batch of episodes.

    Attributes:
        logits: float32 ``[batch, classes]``.
        spent: Cost of the gated layers as a fraction, float64 ``[batch]``, with gradients.
        options: What ran, int64 ``[batch, layers]``.
        probabilities: What gradients flow through, float32 ``[batch, layers, options]``, see
            ``Choice``.
    """

    logits: Tensor
    spent: Tensor
    options: Tensor
    probabilities: Tensor


def straight_through_step(
    backbone: WalkableBackbone, frozen: WalkableBackbone, state: ExecutionState, choice: Choice
) -> ExecutionState:
    """Run the next layer at the chosen options, with gradients of a mixture of all of them.

    The value is ``sum_o p_o f_o(h)`` with ``p`` one-hot. Its gradient with respect to ``p_o`` is
    ``f_o(h)``, which takes the outputs of options that were not chosen, but no gradient through
    them; they come from the frozen form. Options of probability 0 have no gradient and do not run.

    Args:
        backbone: The form that gradients flow through to earlier layers.
        frozen: The same network, fast and without gradients.
        state: Position of the batch.
        choice: What to run.
    """
    layer = state.layer
    costs = option_costs(backbone.costs, choice.options.device)[layer]
    after = run_layer(backbone, state, choice.options)
    ghost = choice.probabilities - choice.probabilities.detach()  # zero, but for its gradient
    shape = (-1, *[1] * (after.hidden.dim() - 1))
    hidden = after.hidden
    for option in choice.probabilities.detach().amax(dim=0).nonzero().flatten().tolist():
        with torch.no_grad():
            output = frozen.layers[layer](state.hidden.detach(), backbone.options[option])
        hidden = hidden + ghost[:, option].reshape(shape) * output
    return after._replace(hidden=hidden, spent=after.spent + ghost.double() @ costs)


def straight_through_rollout(
    backbone: WalkableBackbone,
    frozen: WalkableBackbone,
    gate: TrainableGate,
    images: Tensor,
    choose: Estimator,
    *,
    budget: float | None = None,
    preferences: Tensor | None = None,
) -> StraightThroughRollout:
    """Run a batch under a gate in training.

    Gradients reach earlier choices through activations and costs, not through the gate's features.

    Args:
        backbone: The form that gradients flow through.
        frozen: The same network with the same weights, fast and without gradients.
        gate: Returns logits.
        images: uint8 ``[batch, c, h, w]``.
        choose: Turns logits into choices.
        budget: Per-input budget that the gate sees.
        preferences: Preference of each image, float32 ``[batch]``; ``None`` for gates for one
            budget.
    """
    gate.reset(len(images))
    state, probabilities = run_stem(backbone, images), []
    while state.layer < backbone.costs.n_layers:
        with torch.no_grad():
            seen = observe(frozen, state, budget=budget, preferences=preferences)
        choice = choose(gate(seen.features, seen.layer, seen.context))
        state = straight_through_step(backbone, frozen, state, choice)
        probabilities.append(choice.probabilities)
    return StraightThroughRollout(
        run_head(backbone, state), state.spent, state.options, torch.stack(probabilities, dim=1)
    )
