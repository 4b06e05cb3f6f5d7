"""Observations of a gate: features of the backbone, layer, spent cost and budget."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.execution import ExecutionState

FEATURE_LIMIT = 10.0
CONTEXT_SIZE = 3
"""Number of context values without budget conditioning; a preference adds one."""
MIN_STD = 1e-6
"""Smallest standard deviation, which avoids division by zero for a channel that never fires."""


class Observation(NamedTuple):
    """Observation of a batch whose samples are all at the same layer.

    Attributes:
        features: The backbone's ``feature`` in standard deviations from its mean at this layer,
            clipped to [-10, 10] and padded with zeros to the widest layer, float32 ``[batch,
            width]``.
        layer: Index of the layer to choose for.
        context: Spent cost, budget, previous option and, with budget conditioning, preference, each
            in [0, 1], float32 ``[batch, 3]`` or ``[batch, 4]``.
    """

    features: Tensor
    layer: int
    context: Tensor


def observation_width(backbone: WalkableBackbone) -> int:
    """Return the number of features in an observation: the maximum over the layers."""
    return max(backbone.feature_sizes)


def context_size(*, budget_conditioning: bool) -> int:
    """Return the number of context values, with or without budget conditioning."""
    return CONTEXT_SIZE + budget_conditioning


def cost_scale(fraction: Tensor) -> Tensor:
    """Map a cost fraction to [0, 1] with enough resolution for low bit widths.

    ``32 * sqrt(fraction)`` is the uniform bit width of the same cost; the function returns its
    logarithm, scaled so that 32 bit gives 1. 2, 4 and 8 bit map to 0.31, 0.46 and 0.63 where the
    fractions are 0.004, 0.016 and 0.063.
    """
    return torch.log2(1.0 + 32.0 * fraction.clamp(0.0, 1.0).sqrt()) / math.log2(33.0)


def observe(
    backbone: WalkableBackbone,
    state: ExecutionState,
    *,
    budget: float | None,
    gate_macs: float = 0.0,
    preferences: Tensor | None = None,
    with_features: bool = True,
) -> Observation:
    """Return the observation of a batch before its next layer.

    After the last layer the features are zero and the layer index stays at the last layer.

    Args:
        backbone: The network.
        state: State of the batch.
        budget: Upper bound on computation in percent; ``None`` is encoded as 1.
        gate_macs: MACs per image of the gate, at full precision, which count towards the budget.
        preferences: Preference of each sample, float32 ``[batch]``; ``None`` for gates without
            budget conditioning.
        with_features: Compute the features, which takes time; ``False`` leaves them zero, for gates
            that do not read them.

    Returns:
        The observation of every sample.
    """
    n_layers = backbone.costs.n_layers
    features = torch.zeros(
        len(state.spent),
        observation_width(backbone),
        dtype=torch.float32,
        device=state.spent.device,
    )
    if with_features and state.layer < n_layers:
        size = backbone.feature_sizes[state.layer]
        mean = backbone.feature_mean[state.layer, :size]
        std = backbone.feature_std[state.layer, :size].clamp(min=MIN_STD)
        normalised = (backbone.feature(state.hidden, state.layer) - mean) / std  # [batch, size]
        features[:, :size] = normalised.clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
    previous = state.options[:, state.layer - 1] if state.layer > 0 else None
    return Observation(
        features=features,
        layer=min(state.layer, n_layers - 1),
        context=_context(
            backbone,
            state.spent,
            previous,
            allowed=_allowed(backbone, budget, gate_macs),
            preferences=preferences,
        ),
    )


def terminal_observation(
    backbone: WalkableBackbone,
    options: Tensor,
    spent: Tensor,
    *,
    layer: int,
    budget: float | None,
    gate_macs: float = 0.0,
    preferences: Tensor | None = None,
) -> Observation:
    """Return the observation of images that left before a layer; the features are zero.

    Args:
        backbone: The network.
        options: Options of the images, int64 ``[batch, layers]``.
        spent: Fraction spent, exit action included, float64 ``[batch]``.
        layer: Index of the layer that the images would have reached next.
        budget: Upper bound on computation in percent; ``None`` is encoded as 1.
        gate_macs: MACs per image of the gate, at full precision, which count towards the budget.
        preferences: Preference of each sample, float32 ``[batch]``; ``None`` for gates without
            budget conditioning.
    """
    width = observation_width(backbone)
    features = torch.zeros(len(spent), width, dtype=torch.float32, device=spent.device)
    previous = options[:, layer - 1] if layer > 0 else None
    allowed = _allowed(backbone, budget, gate_macs)
    context = _context(backbone, spent, previous, allowed=allowed, preferences=preferences)
    return Observation(features=features, layer=layer, context=context)


def _allowed(backbone: WalkableBackbone, budget: float | None, gate_macs: float) -> float:
    """Return the scaled budget of the gated layers."""
    if budget is None:
        return 1.0
    left = gated_budget(backbone.costs, budget, gate_macs=gate_macs)
    return float(cost_scale(torch.tensor(left)))


def _context(
    backbone: WalkableBackbone,
    spent: Tensor,
    previous: Tensor | None,
    *,
    allowed: float,
    preferences: Tensor | None,
) -> Tensor:
    """Return the context values, see ``Observation``; ``previous`` is the last option that ran."""
    width = context_size(budget_conditioning=preferences is not None)
    context = torch.zeros(len(spent), width, dtype=torch.float32, device=spent.device)
    context[:, 0] = cost_scale(spent)
    context[:, 1] = allowed
    if previous is not None and len(backbone.options) > 1:
        context[:, 2] = previous / (len(backbone.options) - 1)
    if preferences is not None:
        context[:, CONTEXT_SIZE] = preferences
    return context
