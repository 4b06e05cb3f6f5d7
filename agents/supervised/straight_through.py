"""A walk whose hard choices let gradients reach the gate, for gates that are trained by supervision."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.gating.execution import WalkState, finish, option_costs, start, step
from dfs_rl.gating.observation import observe


class Choice(NamedTuple):
    """One choice per image.

    Attributes:
        options: What is run, int64 ``[batch]``.
        chances: What gradients flow through instead, float32 ``[batch, options]``; rows sum to 1.
    """

    options: Tensor
    chances: Tensor


Estimator = Callable[[Tensor], Choice]
"""Turns logits, ``[batch, options]``, into choices."""


def gumbel_choice(logits: Tensor, *, temperature: float, generator: torch.Generator) -> Choice:
    """Draw by the straight-through Gumbel-softmax (Jang et al., ICLR 2017).

    Args:
        logits: ``[batch, options]``; the draws follow their softmax.
        temperature: Of the softmax that gradients flow through, above 0: low is near the draw but noisy.
        generator: Draws the noise.
    """
    noisy = _perturbed(logits, generator)
    return Choice(noisy.argmax(dim=1), (noisy / temperature).softmax(dim=1))


def drawn_choice(logits: Tensor, *, generator: torch.Generator) -> Choice:
    """Draw by the softmax and let gradients flow through it, without noise.

    Args:
        logits: ``[batch, options]``.
        generator: Draws.
    """
    return Choice(_perturbed(logits, generator).argmax(dim=1), logits.softmax(dim=1))


def argmax_choice(logits: Tensor) -> Choice:
    """Take the largest logit and let gradients flow through the softmax, without noise, as DFS does."""
    return Choice(logits.argmax(dim=1), logits.softmax(dim=1))


def _perturbed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gumbel noise, with which the largest of ``logits`` is a draw from their softmax."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    tiny = torch.finfo(uniform.dtype).tiny
    return logits - torch.log(-torch.log(uniform.clamp(min=tiny)) + tiny)


class TrainableGate(Protocol):
    """A gate that tells its logits."""

    def reset(self, batch_size: int) -> None:
        """Begin a walk."""
        ...

    def __call__(self, features: Tensor, layer: int, context: Tensor) -> Tensor:
        """Return logits, ``[batch, options]``."""
        ...


class SoftWalk(NamedTuple):
    """What came of a walk.

    Attributes:
        logits: float32 ``[batch, classes]``.
        spent: Cost of the gated layers as a fraction, float64 ``[batch]``; gradients reach the gate through it as well.
        options: What was run, int64 ``[batch, layers]``.
        chances: What gradients flow through, float32 ``[batch, layers, options]``, see ``Choice``.
    """

    logits: Tensor
    spent: Tensor
    options: Tensor
    chances: Tensor


def soft_step(
    backbone: WalkableBackbone, frozen: WalkableBackbone, state: WalkState, choice: Choice
) -> WalkState:
    """Run the next layer at the chosen options, with gradients as if each image ran a mixture of all of them.

    The value is ``sum_o p_o f_o(h)`` with ``p`` one-hot; its gradient with respect to ``p_o`` is ``f_o(h)``, which takes the
    outputs of the options that were not chosen, but no gradient through them. They come from the frozen form. Options without a
    chance have no gradient either, and do not run.

    Args:
        backbone: The form that gradients flow through to earlier layers.
        frozen: The same network, fast and without gradients.
        state: Where the batch stands.
        choice: What to run.
    """
    layer = state.layer
    costs = option_costs(backbone.costs, choice.options.device)[layer]
    after = step(backbone, state, choice.options)
    ghost = choice.chances - choice.chances.detach()  # zero, but for its gradient
    shape = (-1, *[1] * (after.hidden.dim() - 1))
    hidden = after.hidden
    for option in choice.chances.detach().amax(dim=0).nonzero().flatten().tolist():
        with torch.no_grad():
            output = frozen.layers[layer](state.hidden.detach(), backbone.options[option])
        hidden = hidden + ghost[:, option].reshape(shape) * output
    return after._replace(hidden=hidden, spent=after.spent + ghost.double() @ costs)


def soft_walk(
    backbone: WalkableBackbone,
    frozen: WalkableBackbone,
    gate: TrainableGate,
    images: Tensor,
    choose: Estimator,
    *,
    budget: float | None = None,
    positions: Tensor | None = None,
) -> SoftWalk:
    """Walk a batch with a gate in training.

    What the gate sees is a fact to it: gradients reach earlier choices through activations and costs, not through features.

    Args:
        backbone: The form that gradients flow through.
        frozen: The same network with the same weights, fast and without gradients; where weights have changed, a new one.
        gate: What tells the logits.
        images: uint8 ``[batch, c, h, w]``.
        choose: What turns logits into choices.
        budget: As the gate sees it.
        positions: Of the gate's dial for each image, float32 ``[batch]``; ``None`` for gates without one.
    """
    gate.reset(len(images))
    state, chances = start(backbone, images), []
    while state.layer < backbone.costs.n_layers:
        with torch.no_grad():
            seen = observe(frozen, state, budget=budget, positions=positions)
        choice = choose(gate(seen.features, seen.layer, seen.context))
        state = soft_step(backbone, frozen, state, choice)
        chances.append(choice.chances)
    return SoftWalk(
        finish(backbone, state), state.spent, state.options, torch.stack(chances, dim=1)
    )
