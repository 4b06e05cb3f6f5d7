"""Observations of a gate: features of the backbone, layer, spent cost and budget."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.costs import CostTable
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.execution import ExecutionState
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings

FEATURE_LIMIT = 10.0
CONTEXT_SIZE = 3
"""Number of context values without budget conditioning; a preference adds one."""
MIN_STD = 1e-6
"""Lower bound of deviations, against division by zero for a channel that never fires."""


class Observation(NamedTuple):
    """Observation of a batch whose samples are all at the same layer.

    Attributes:
        features: The backbone's ``feature`` in standard deviations from its mean at this layer,
            clipped to [-10, 10] and padded with zeros to the widest layer, float32 ``[batch,
            width]``.
        layer: Index of the layer to choose for, the number of layers at the end of a pass that
            may be followed by another; the last layer after the last pass.
        context: Spent cost, budget, previous option, with budget conditioning the preference, and
            with several passes their evidence, see ``PassHistory``; each in [0, 1], float32
            ``[batch, context_size]``.
    """

    features: Tensor
    layer: int
    context: Tensor


def observation_width(backbone: GatedBackbone) -> int:
    """Return the number of features in an observation: the maximum over the layers."""
    return max(backbone.feature_sizes)


def context_size(*, budget_conditioning: bool, passes: PassSettings = SINGLE_PASS) -> int:
    """Return the number of context values, with or without budget conditioning."""
    return CONTEXT_SIZE + budget_conditioning + passes.evidence_size


def cost_scale(fraction: Tensor) -> Tensor:
    """Map a cost fraction to [0, 1] with enough resolution for low bit widths.

    ``32 * sqrt(fraction)`` is the uniform bit width of the same cost; the function returns its
    logarithm, scaled so that 32 bit gives 1. 2, 4 and 8 bit map to 0.31, 0.46 and 0.63 where the
    fractions are 0.004, 0.016 and 0.063.
    """
    return torch.log2(1.0 + 32.0 * fraction.clamp(0.0, 1.0).sqrt()) / math.log2(33.0)


def scaled_cost(fraction: float) -> float:
    """Return ``cost_scale`` of a number."""
    return math.log2(1.0 + 32.0 * math.sqrt(min(max(fraction, 0.0), 1.0))) / math.log2(33.0)


@lru_cache(maxsize=64)
def scaled_budget(costs: CostTable, budget: float, *, gate_macs: float) -> float:
    """Return a budget in percent as the context of a gate contains it, see ``gated_budget``."""
    left = gated_budget(costs, budget, gate_macs=gate_macs)
    return float(cost_scale(torch.tensor(left)))


def observe(
    backbone: GatedBackbone,
    state: ExecutionState,
    *,
    budget: float | None,
    gate_macs: float = 0.0,
    preferences: Tensor | None = None,
    evidence: Tensor | None = None,
    ended: bool = False,
    with_features: bool = True,
) -> Observation:
    """Return the observation of every sample of a batch before its next layer.

    Args:
        backbone: The network.
        state: State of the batch; after the last layer the features are zero.
        budget: Upper bound on computation in percent; ``None`` is encoded as 1.
        gate_macs: MACs per image of the gate, at full precision, which count towards the budget.
        preferences: Preference of each sample, float32 ``[batch]``, for budget conditioning.
        evidence: Evidence of earlier passes, float32 ``[batch, size]``, if there may be several.
        ended: True at the end of a pass, also of one that took an exit.
        with_features: ``False`` leaves the features zero, which saves time.
    """
    costs, n, device = backbone.costs, len(state.spent), state.spent.device
    features = torch.zeros(n, observation_width(backbone), dtype=torch.float32, device=device)
    if with_features and not ended and state.layer < costs.n_layers:
        size = backbone.feature_sizes[state.layer]
        mean = backbone.feature_mean[state.layer, :size]
        std = backbone.feature_std[state.layer, :size].clamp(min=MIN_STD)
        normalised = (backbone.feature(state.hidden, state.layer) - mean) / std  # [batch, size]
        normalised = normalised.clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
        features = functional.pad(normalised, (0, observation_width(backbone) - size))
    spent = cost_scale(state.spent).float()
    left = torch.ones_like(spent)
    if budget is not None:
        left = left * scaled_budget(costs, budget, gate_macs=gate_macs)
    previous = torch.zeros_like(spent)
    if state.layer > 0 and len(backbone.options) > 1 and not (ended and evidence is not None):
        previous = state.options[:, state.layer - 1].float() / (len(backbone.options) - 1)
    columns = [spent, left, previous] + ([] if preferences is None else [preferences.float()])
    context = torch.stack(columns, dim=1)
    if evidence is None:
        return Observation(features, min(state.layer, costs.n_layers - 1), context)
    context = torch.cat([context, evidence], dim=1)
    return Observation(features, costs.n_layers if ended else state.layer, context)
