"""Reinforcement that goes on from a gate that exists, for example one that was learned by supervision.

SkipNet (Wang et al., ECCV 2018) found reinforcement from scratch to stay at chance on a plain backbone, and began with a supervised gate.
"""

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from dfs_rl.agents.policies import LayerwiseExtractor, OwnWeights
from dfs_rl.errors import ConfigError
from dfs_rl.gating.networks import LayerwiseGate, LearnedGate, RecurrentGate


def check_start(gate: LearnedGate, wanted: LearnedGate, source: str) -> None:
    """Refuse a gate that the one to be learned cannot begin as.

    Args:
        gate: The gate that exists.
        wanted: The one to be learned, untrained.
        source: Where the first is from.

    Raises:
        ConfigError: If kind, menu, what may be chosen of it, features or width differ.
    """
    for what, has, needs in (
        ("is", type(gate).__name__, type(wanted).__name__),
        ("chooses from bits", list(gate.options), list(wanted.options)),
        ("may choose the options", list(gate.choices), list(wanted.choices)),
        ("reads features", list(gate.feature_sizes), list(wanted.feature_sizes)),
        ("is as wide as", gate.hidden, wanted.hidden),
    ):
        if has != needs:
            raise ConfigError(
                f"the gate of {source} {what} {has}, but the one to be learned from it {needs}."
            )


@torch.no_grad()
def start_from(model: BaseAlgorithm, gate: LearnedGate) -> None:
    """Give a policy's actor the weights of a gate that ``check_start`` allows, so that it draws from the gate's distribution.

    A gate for all budgets that is to learn one alone begins as it is where it was turned to; one for a single budget that is to learn
    all begins the same at every position. The critic begins from nothing.

    Args:
        model: An algorithm with an actor.
        gate: What ``deploy`` would return now.
    """
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy)
    extractor = policy.pi_features_extractor
    assert isinstance(extractor, OwnWeights)
    if isinstance(gate, RecurrentGate):
        assert isinstance(policy, RecurrentActorCriticPolicy)
        for layer, embedding in enumerate(gate.embeddings):
            _set_inner(extractor, layer, _linear(embedding), gate)
        for name, parameter in gate.cell.named_parameters():
            policy.lstm_actor.get_parameter(f"{name}_l0").copy_(parameter)
        head = _linear(policy.action_net)
        head.weight.copy_(gate.scores.weight)
        head.bias.copy_(gate.scores.bias)
    elif isinstance(gate, LayerwiseGate):
        assert isinstance(extractor, LayerwiseExtractor)
        for layer, network in enumerate(gate.networks):
            first, _, last = network.children()
            _set_inner(extractor, layer, _linear(first), gate)
            extractor.outer[layer].copy_(_linear(last).weight.T)
            extractor.outer_bias[layer].copy_(_linear(last).bias)


def _set_inner(extractor: OwnWeights, layer: int, linear: nn.Linear, gate: LearnedGate) -> None:
    """Set what a layer's features and context are mapped by."""
    inner, size = extractor.inner[layer], extractor.feature_sizes[layer]  # [S + C, width]
    context: Tensor = inner[extractor.features_width :]  # [C, width]
    theirs = linear.weight[:, size:].T  # [C of the gate, width]
    both = min(len(context), len(theirs))
    inner.zero_()
    inner[:size].copy_(linear.weight[:, :size].T)
    context[:both].copy_(theirs[:both])
    extractor.inner_bias[layer].copy_(linear.bias)
    if len(theirs) > both:  # its dial is no more, and stays where it was
        extractor.inner_bias[layer].add_(theirs[both], alpha=gate.position)


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
