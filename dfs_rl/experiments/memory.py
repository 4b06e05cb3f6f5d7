"""Estimates of the memory of a gate's training, computed from its settings in advance."""

import math
from typing import Any

from dfs_rl.agents.gate_export import gate_shape
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    QLearningConfig,
    QRDQNConfig,
    transition_bytes,
)
from dfs_rl.backbones import Backbone
from dfs_rl.backbones.footprint import backward_bytes, forward_bytes
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.envs.spaces import observation_bytes, observation_space
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.gating.observation import context_size
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings

_FLOAT = 4
_COPIES = 12
"""Copies of a gate's weights: networks with gradients and moments, validated and saved gates."""
_KEPT = 8
"""Copies of hidden activations, observations and records that exist at the same time."""


def training_needs(
    config: TrainAgentConfig | TrainGumbelConfig,
    backbone: Backbone,
    *,
    kind: str,
    hidden: int | None,
    decisions: int,
    val_images: int,
    num_envs: int = 0,
    outputs: int = 1,
    passes: PassSettings = SINGLE_PASS,
) -> dict[str, float]:
    """Return the approximate bytes of gate, episodes and co-trained backbone, by setting.

    An update has ``decisions`` decisions of ``num_envs`` parallel episodes, and the gate
    ``outputs`` scores per option. See ``gate_shape`` for the shape of the gate.
    """
    features, repeats = config.resolved_features, config.val_repeats
    form: dict[str, Any] = {"budget_conditioning": config.all_budgets, "passes": passes}
    sizes, width = gate_shape(backbone, kind=kind, features=features, hidden=hidden, **form)
    inputs = max(sizes) + context_size(**form)
    weights = width * len(sizes) * (inputs + outputs * backbone.costs.n_actions)
    if kind == "lstm":
        weights += 8 * width**2
    layers = backbone.costs.n_layers
    seen = _KEPT * layers * observation_bytes(observation_space(backbone, **form))
    each = math.prod(backbone.image_shape) + 8 * _KEPT * layers
    needs = {
        f"hidden is {width}": _FLOAT * (_COPIES * weights + _KEPT * decisions * width),
        f"num_envs is {num_envs}": num_envs * (forward_bytes(backbone) + seen),
        f"val_repeats is {repeats}": val_images * repeats * each,
    }
    if config.cotrains:
        batch = config.cotrain.batch_size
        needs[f"cotrain.batch_size is {batch}"] = 2 * batch * backward_bytes(backbone)  # 2 passes
    return {setting: float(need) for setting, need in needs.items()}


def replay_needs(
    config: AlgorithmConfig, backbone: GatedBackbone, *, budget_conditioning: bool
) -> dict[str, float]:
    """Return the approximate bytes of a replay buffer and of a batch from it, by setting."""
    if not isinstance(config, QLearningConfig):
        return {}
    space = observation_space(backbone, budget_conditioning=budget_conditioning)
    batch, size, seen = config.batch_size, config.buffer_size, observation_bytes(space)
    needs = {f"batch_size is {batch}": batch * _KEPT * seen}
    if size is not None:
        needs[f"buffer_size is {size}"] = size * transition_bytes(seen)
    if isinstance(config, QRDQNConfig):  # the Huber loss takes every pair of quantiles
        n = config.n_quantiles
        pairs = _FLOAT * (backbone.costs.n_actions * n + n**2)
        needs[f"n_quantiles is {n}"] = _KEPT * batch * pairs
    return {setting: float(need) for setting, need in needs.items()}
