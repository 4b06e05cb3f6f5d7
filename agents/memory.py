"""Estimates of the memory of a gate's training, computed from its settings in advance."""

import math

from dfs_rl.agents.gate_export import gate_shape
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    FeatureChoice,
    QLearningConfig,
    QRDQNConfig,
    transition_bytes,
)
from dfs_rl.backbones import Backbone
from dfs_rl.backbones.footprint import backward_bytes, forward_bytes
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.envs.spaces import observation_bytes, observation_space
from dfs_rl.gating.observation import context_size
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings

_FLOAT = 4
_COPIES = 12
"""Copies of a gate's weights: networks with gradients and moments, validated and saved gates."""
_KEPT = 8
"""Copies of hidden activations, observations and records that exist at the same time."""


def training_needs(  # noqa: PLR0913
    backbone: Backbone,
    *,
    kind: str,
    features: FeatureChoice,
    hidden: int | None,
    budget_conditioning: bool,
    decisions: int,
    val_images: int,
    val_repeats: int,
    num_envs: int = 0,
    outputs: int = 1,
    cotrain_batch: int | None = None,
    passes: PassSettings = SINGLE_PASS,
) -> dict[str, float]:
    """Return the approximate bytes of gate, episodes and co-trained backbone, by setting.

    Args:
        backbone: The backbone.
        kind: Kind of the gate, like the next settings as for ``gate_shape``.
        features: Features that the gate reads.
        hidden: Hidden width; ``None`` for the default.
        budget_conditioning: True for one gate for all budgets.
        decisions: Number of decisions per update.
        val_images: Number of images in the val split.
        val_repeats: Episodes per val image of a budget-conditioned gate.
        num_envs: Number of parallel episodes in training.
        outputs: Number of scores per option.
        cotrain_batch: Images per step of a co-trained backbone; ``None`` for a frozen one.
        passes: Passes that an episode may have.
    """
    sizes, width = gate_shape(
        backbone,
        kind=kind,
        features=features,
        hidden=hidden,
        budget_conditioning=budget_conditioning,
        passes=passes,
    )
    context = context_size(budget_conditioning=budget_conditioning, passes=passes)
    inputs = max(sizes) + context
    weights = width * len(sizes) * (inputs + outputs * backbone.costs.n_actions)
    if kind == "lstm":
        weights += 8 * width**2
    layers = backbone.costs.n_layers
    seen = _KEPT * layers * _seen_bytes(backbone, budget_conditioning, passes)
    rows = val_images * (val_repeats if budget_conditioning else 1)
    needs = {
        f"hidden is {width}": _FLOAT * (_COPIES * weights + _KEPT * decisions * width),
        f"num_envs is {num_envs}": num_envs * (forward_bytes(backbone) + seen),
        f"val_repeats is {val_repeats}": rows
        * (math.prod(backbone.image_shape) + 8 * _KEPT * layers),
    }
    if cotrain_batch is not None:
        images = 2 * cotrain_batch  # in two passes
        needs[f"cotrain.batch_size is {cotrain_batch}"] = images * backward_bytes(backbone)
    return {setting: float(need) for setting, need in needs.items()}


def replay_needs(
    config: AlgorithmConfig, backbone: GatedBackbone, *, budget_conditioning: bool
) -> dict[str, float]:
    """Return the approximate bytes of a replay buffer and of a batch from it, by setting."""
    if not isinstance(config, QLearningConfig):
        return {}
    seen = _seen_bytes(backbone, budget_conditioning)
    quantiles = config.n_quantiles if isinstance(config, QRDQNConfig) else 1
    needs = {f"batch_size is {config.batch_size}": float(config.batch_size * _KEPT * seen)}
    if config.buffer_size is not None:
        needs[f"buffer_size is {config.buffer_size}"] = float(
            config.buffer_size * transition_bytes(seen)
        )
    if quantiles > 1:  # the Huber loss takes every pair of quantiles
        pairs = _FLOAT * (backbone.costs.n_actions * quantiles + quantiles**2)
        needs[f"n_quantiles is {quantiles}"] = float(_KEPT * config.batch_size * pairs)
    return needs


def _seen_bytes(
    backbone: GatedBackbone,
    budget_conditioning: bool,  # noqa: FBT001
    passes: PassSettings = SINGLE_PASS,
) -> int:
    space = observation_space(backbone, budget_conditioning=budget_conditioning, passes=passes)
    return observation_bytes(space)
