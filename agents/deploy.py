"""From a policy in training to the gate that ships: the actor alone, in plain torch."""

from typing import NamedTuple

import torch
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from agents.extractor import LayerwiseExtractor
from agents.hyperparameters import FeatureChoice
from dfs_rl.backbones.contract import WalkableBackbone, confidence_sizes
from dfs_rl.cost import BitOptions
from dfs_rl.gating.learned import LayerwiseGate, LearnedGate
from dfs_rl.gating.observation import CONTEXT_SIZE

GATE_SHARE = 0.0005
"""Most that a gate should cost, of the gated layers' MACs; low bits cost 0.01 of them, and a gate must stay far below."""
NARROWEST, WIDEST = 8, 32


class GateShape(NamedTuple):
    """How large a gate is.

    Attributes:
        feature_sizes: How many features, from the first on, it looks at before each layer.
        hidden: Width of each layer's own hidden layer.
    """

    feature_sizes: tuple[int, ...]
    hidden: int


def gate_shape(
    backbone: WalkableBackbone, *, features: FeatureChoice, hidden: int | None
) -> GateShape:
    """Return the shape of a gate over ``backbone``.

    Args:
        backbone: The network.
        features: What the gate looks at.
        hidden: Width of its hidden layers. By default the gate takes ``GATE_SHARE`` of the gated layers' MACs, within 8 to 32
            units: fewer than 8 tell the images of small networks apart badly, and there a gate is dear at any width; more than
            32 brought nothing.
    """
    available = tuple(backbone.feature_sizes)
    sizes = available if features == "all" else confidence_sizes(available)
    if hidden is None:
        per_unit = sum(size + CONTEXT_SIZE + len(backbone.options) for size in sizes)
        left = GATE_SHARE * backbone.costs.total_macs - backbone.feature_macs
        hidden = min(max(int(left / per_unit), NARROWEST), WIDEST)
    return GateShape(feature_sizes=sizes, hidden=hidden)


def untrained_gate(
    backbone: WalkableBackbone,
    *,
    features: FeatureChoice,
    hidden: int | None,
    name: str = "gate",
    budget: float | None = None,
) -> LearnedGate:
    """Return a gate as an agent will deploy it, but for its weights: what it costs is known before anything is learned.

    Args:
        backbone: The network.
        features: What the gate looks at.
        hidden: Width of its hidden layers, see ``gate_shape``.
        name: What tables and plots call it.
        budget: Upper bound on computation in percent that it will be trained for; ``None`` for none.
    """
    shape = gate_shape(backbone, features=features, hidden=hidden)
    return LayerwiseGate(
        shape.feature_sizes,
        backbone.options,
        feature_macs=backbone.feature_macs,
        hidden=shape.hidden,
        name=name,
        budget=budget,
    )


@torch.no_grad()
def deploy(
    model: BaseAlgorithm,
    options: BitOptions,
    *,
    feature_macs: float,
    name: str,
    budget: float | None = None,
) -> LearnedGate:
    """Copy a policy's actor into a gate whose logits are the policy's, or what it expects each option to be worth.

    What belongs to features that a layer does not have is dropped.

    Args:
        model: An algorithm from ``build_algorithm``.
        options: The menu that its actions index.
        feature_macs: What the features that it reads take, see ``WalkableBackbone``.
        name: What tables and plots call the gate.
        budget: Upper bound on computation in percent that it was trained for and keeps to; ``None`` for none.

    Returns:
        The gate, on the policy's device, sharing no memory with it.
    """
    extractor = _extractor(model)
    gate = LayerwiseGate(
        extractor.feature_sizes,
        options,
        feature_macs=feature_macs,
        hidden=extractor.inner.shape[2],
        name=name,
        budget=budget,
    )
    parts = (extractor.features_dim // len(options), len(options))
    for layer, size in enumerate(extractor.feature_sizes):
        first, _, last = gate.networks[layer].children()
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        weights = extractor.inner[layer]  # [S + C, hidden]
        present = torch.cat([weights[:size], weights[extractor.features_width :]])
        first.weight.copy_(present.T)
        first.bias.copy_(extractor.inner_bias[layer])
        # All but QR-DQN have one score per option; of its quantiles the mean decides, which is linear as well.
        last.weight.copy_(extractor.outer[layer].view(-1, *parts).mean(dim=1).T)
        last.bias.copy_(extractor.outer_bias[layer].view(parts).mean(dim=0))
    return gate.to(model.policy.device).eval()


def _extractor(model: BaseAlgorithm) -> LayerwiseExtractor:
    """Return the network that decides."""
    policy = model.policy
    if isinstance(policy, DQNPolicy):
        extractor: object = policy.q_net.features_extractor
    elif isinstance(policy, QRDQNPolicy):
        extractor = policy.quantile_net.features_extractor
    else:
        extractor = policy.pi_features_extractor
    assert isinstance(extractor, LayerwiseExtractor)
    return extractor
