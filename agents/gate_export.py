"""Construction of gates, and conversion between policies and gates in plain torch."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from dfs_rl.agents.hyperparameters import FeatureChoice
from dfs_rl.agents.policies import PerLayerEmbedding, PerLayerExtractor
from dfs_rl.backbones.interfaces import GatedBackbone, confidence_sizes
from dfs_rl.errors import ConfigError
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate, exit_info
from dfs_rl.gating.observation import CONTEXT_SIZE, context_size
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.registry import GATES, ONE_SHOT

GATE_SHARE = 0.0005
"""Default MACs of a gate over those of the gated layers, well below the cost 0.01 of low bits."""
_MIN_WIDTH, _MAX_WIDTH = 8, 32
RECURRENT_WIDTH = 10
"""Default width of embedding and LSTM, as in DFS; one LSTM serves all layers."""


def gate_shape(
    backbone: GatedBackbone,
    *,
    kind: str = "ff",
    features: FeatureChoice,
    hidden: int | None,
    budget_conditioning: bool,
    passes: PassSettings = SINGLE_PASS,
) -> tuple[tuple[int, ...], int]:
    """Return the number of features that a gate reads before each layer, and its hidden width.

    By default, unless it is an LSTM, a gate takes ``GATE_SHARE`` of the gated layers' MACs, with 8
    to 32 units: fewer separate images of small backbones badly, and more bring no gain.
    """
    sizes = tuple(backbone.feature_sizes)
    if features == "none":
        sizes = (0,) * len(sizes)
    elif features == "confidence":
        sizes = confidence_sizes(sizes)
    if hidden is None and kind == "lstm":
        return sizes, RECURRENT_WIDTH
    if hidden is None:
        context = context_size(budget_conditioning=budget_conditioning, passes=passes)
        outputs = backbone.costs.n_actions
        per_unit = sum(size + context + outputs for size in sizes)
        if kind == ONE_SHOT:  # it reads features once
            per_unit = sizes[0] + context + len(sizes) * outputs
        left = GATE_SHARE * backbone.costs.total_macs
        left -= 0.0 if features == "none" else backbone.feature_macs
        hidden = min(max(int(left / per_unit), _MIN_WIDTH), _MAX_WIDTH)
    return sizes, hidden


def untrained_gate(
    backbone: GatedBackbone,
    *,
    kind: str,
    features: FeatureChoice,
    hidden: int | None,
    budget_conditioning: BudgetConditioning | None = None,
    passes: PassSettings = SINGLE_PASS,
    **settings: Any,  # noqa: ANN401 - passed on
) -> LearnedGate:
    """Build a gate of a kind in ``GATES``; ``settings`` are name, budget and choices."""
    sizes, width = gate_shape(
        backbone,
        kind=kind,
        features=features,
        hidden=hidden,
        budget_conditioning=budget_conditioning is not None,
        passes=passes,
    )
    exits, feature_macs = exit_info(backbone), backbone.feature_macs
    if features == "none":
        feature_macs = 0.0
        if exits is not None:
            exits = replace(exits, layer_feature_macs=(0.0,) * len(sizes))
    if passes != SINGLE_PASS:  # kinds of users may not know it
        settings["passes"] = passes
    return GATES[kind](
        sizes,
        backbone.options,
        feature_macs=feature_macs,
        hidden=width,
        budget_conditioning=budget_conditioning,
        exits=exits,
        **settings,
    )


@torch.no_grad()
def deploy(model: BaseAlgorithm, template: LearnedGate) -> LearnedGate:
    """Return a copy of ``template``, of the policy's shape, with the weights of its actor."""
    gate, extractor = copy.deepcopy(template), _extractor(model)
    for layer, linear in enumerate(_first_maps(gate)):
        weight, bias = extractor.layer_weights(layer)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    for ours, theirs in _later_weights(gate, model):
        values = theirs
        if theirs.shape != ours.shape:
            # QR-DQN has several scores per option; their mean, again linear, is the action value.
            values = theirs.view(*theirs.shape[:-1], -1, gate.n_actions).mean(dim=-2)
        ours.copy_(values)
    return gate.to(model.policy.device).eval()


def _first_maps(gate: LearnedGate) -> list[nn.Linear]:
    """Return a gate's linear maps of features and context, one per decision."""
    maps: list[nn.Module] = []
    if isinstance(gate, LSTMGate):
        maps = [*gate.embeddings]
    elif isinstance(gate, MLPGate):
        maps = [next(network.children()) for network in gate.networks]
    return cast("list[nn.Linear]", maps)


def _later_weights(gate: LearnedGate, model: BaseAlgorithm) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a gate's weights after the first maps, each with that of a policy's actor."""
    policy: Any = model.policy
    if isinstance(gate, LSTMGate):
        for name, parameter in gate.cell.named_parameters():  # one layer of an LSTM
            yield parameter, policy.lstm_actor.get_parameter(f"{name}_l0")
        yield gate.scores.weight, policy.action_net.weight
        yield gate.scores.bias, policy.action_net.bias
    elif isinstance(gate, MLPGate):
        extractor = _extractor(model)
        assert isinstance(extractor, PerLayerExtractor)
        for layer, network in enumerate(gate.networks):
            *_, last = cast("list[nn.Linear]", list(network.children()))
            yield last.weight.T, extractor.outer[layer]
            yield last.bias, extractor.outer_bias[layer]


def _extractor(model: BaseAlgorithm) -> PerLayerEmbedding:
    """Return the features extractor that computes the scores of actions."""
    policy = model.policy
    if isinstance(policy, DQNPolicy):
        extractor: object = policy.q_net.features_extractor
    elif isinstance(policy, QRDQNPolicy):
        extractor = policy.quantile_net.features_extractor
    else:
        extractor = policy.pi_features_extractor
    assert isinstance(extractor, PerLayerEmbedding)
    return extractor


def check_initial_gate(gate: LearnedGate, wanted: LearnedGate, source: str) -> None:
    """Raise ConfigError if the gate of ``source`` cannot initialize the gate to be trained."""
    for what, has, needs in (
        ("kind", type(gate).__name__, type(wanted).__name__),
        ("bit options", list(gate.options), list(wanted.options)),
        ("allowed options", list(gate.choices), list(wanted.choices)),
        ("feature sizes", list(gate.feature_sizes), list(wanted.feature_sizes)),
        ("hidden width", gate.hidden, wanted.hidden),
        ("passes", gate.passes, wanted.passes),
    ):
        if has != needs:
            raise ConfigError(
                f"init_gate is {source}, whose gate has the {what} {has}; the gate to be trained "
                f"has {needs}."
            )


@torch.no_grad()
def load_gate_into_policy(model: BaseAlgorithm, gate: LearnedGate) -> None:
    """Copy a gate into a policy's actor, the inverse of ``deploy``; the critic does not change.

    SkipNet (Wang et al., ECCV 2018) starts from a supervised gate too. A budget-conditioned gate
    initializes a policy for one budget at its current preference; a gate for one budget initializes
    a budget-conditioned policy equally at all preferences.
    """
    extractor, at = _extractor(model), CONTEXT_SIZE  # the place of a preference in the context
    for layer, linear in enumerate(_first_maps(gate)):
        inner, size = extractor.inner[layer], extractor.feature_sizes[layer]  # [S + C, width]
        context: Tensor = inner[extractor.features_width :]  # [C, width]
        theirs = linear.weight[:, size:].T  # [C of the gate, width]
        extractor.inner_bias[layer].copy_(linear.bias)
        if len(theirs) < len(context):
            theirs = torch.cat([theirs[:at], torch.zeros_like(theirs[:1]), theirs[at:]])
        elif len(theirs) > len(context):  # the budget is fixed: fold it into the bias
            extractor.inner_bias[layer].add_(theirs[at], alpha=gate.preference)
            theirs = torch.cat([theirs[:at], theirs[at + 1 :]])
        inner.zero_()
        inner[:size].copy_(linear.weight[:, :size].T)
        context.copy_(theirs)
    for ours, weights in _later_weights(gate, model):
        weights.copy_(ours)
