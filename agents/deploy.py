"""From a policy in training to the gate that ships: the actor alone, in plain torch."""

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from agents.extractor import LayerwiseExtractor
from dfs_rl.cost import BitOptions
from dfs_rl.gating.gates import LayerwiseGate


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
