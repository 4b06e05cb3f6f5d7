"""From a policy in training to the gate that ships: the actor alone, in plain torch."""

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from agents.extractor import LayerwiseExtractor
from dfs_rl.backbones.contract import WalkableBackbone
from dfs_rl.cost import BitOptions
from dfs_rl.gating.gates import LayerwiseGate
from dfs_rl.gating.observation import CONTEXT_SIZE

GATE_SHARE = 0.0005
"""Most that a gate should cost, of the gated layers' MACs; low bits cost 0.01 of them, and a gate must stay far below."""
NARROWEST, WIDEST = 8, 32


def affordable_width(backbone: WalkableBackbone) -> int:
    """Return the hidden width at which a gate takes ``GATE_SHARE`` of the gated layers' MACs, within 8 to 32.

    Fewer than 8 units tell the images of small networks apart badly, and there a gate is dear at any width; more than 32
    brought nothing.
    """
    n_options = len(backbone.options)
    per_unit = sum(c + CONTEXT_SIZE + n_options for c in backbone.feature_channels)
    affordable = int(GATE_SHARE * backbone.costs.total_macs / per_unit)
    return min(max(affordable, NARROWEST), WIDEST)


@torch.no_grad()
def deploy(
    model: OnPolicyAlgorithm, options: BitOptions, *, name: str, budget: float | None = None
) -> LayerwiseGate:
    """Copy a policy's actor into a gate whose logits are the policy's.

    The policy's shared action head is a linear map on top of each layer's linear scores, so it is folded into them; what belongs to
    channels that a layer does not have is dropped.

    Args:
        model: An algorithm from ``build_algorithm``.
        options: The menu that its actions index.
        name: What tables and plots call the gate.
        budget: Upper bound on computation in percent that it was trained for and keeps to; ``None`` for none.

    Returns:
        The gate, on the policy's device, sharing no memory with it.
    """
    extractor = model.policy.pi_features_extractor
    head = model.policy.action_net
    assert isinstance(extractor, LayerwiseExtractor)
    assert isinstance(head, nn.Linear)
    gate = LayerwiseGate(
        extractor.feature_channels,
        options,
        hidden=extractor.inner.shape[2],
        name=name,
        budget=budget,
    )
    for layer, channels in enumerate(extractor.feature_channels):
        first, _, last = gate.networks[layer].children()
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        weights = extractor.inner[layer]  # [F + C, hidden]
        present = torch.cat([weights[:channels], weights[extractor.features_width :]])
        first.weight.copy_(present.T)
        first.bias.copy_(extractor.inner_bias[layer])
        last.weight.copy_(head.weight @ extractor.outer[layer].T)
        last.bias.copy_(head.weight @ extractor.outer_bias[layer] + head.bias)
    return gate.to(model.policy.device).eval()
