"""Estimates of the memory of a gate's training, computed from its settings in advance."""

from dfs_rl.agents.gate_export import RECURRENT_WIDTH, gate_shape
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    FeatureChoice,
    QLearningConfig,
    QRDQNConfig,
    transition_bytes,
)
from dfs_rl.backbones.footprint import forward_bytes
from dfs_rl.backbones.interfaces import WalkableBackbone
from dfs_rl.envs.spaces import observation_bytes, observation_space
from dfs_rl.gating.observation import context_size

_FLOAT = 4
_COPIES = 12
"""Copies of a gate's weights: networks with gradients and moments, validated and saved gates."""
_KEPT = 8
"""Copies of hidden activations, observations and records that exist at the same time."""


def gate_needs(
    backbone: WalkableBackbone,
    *,
    kind: str,
    features: FeatureChoice,
    hidden: int | None,
    budget_conditioning: bool,
    decisions: int,
    outputs: int = 1,
) -> dict[str, float]:
    """Return the approximate bytes of a gate in training, by setting.

    Args:
        backbone: The backbone.
        kind: Kind of the gate, see ``untrained_gate``.
        features: Features that the gate reads.
        hidden: Hidden width; ``None`` for the default.
        budget_conditioning: True for one gate for all budgets.
        decisions: Number of decisions per update.
        outputs: Number of scores per option.
    """
    sizes, width = gate_shape(
        backbone, features=features, hidden=hidden, budget_conditioning=budget_conditioning
    )
    scores = outputs * backbone.costs.n_actions
    if kind == "lstm":
        width = hidden or RECURRENT_WIDTH
    units = len(sizes) * (
        max(sizes) + context_size(budget_conditioning=budget_conditioning) + scores
    )
    weights = width * units + (8 * width**2 if kind == "lstm" else 0)
    needs = _FLOAT * (_COPIES * weights + _KEPT * decisions * width)
    return {f"hidden is {width}": needs}


def rollout_needs(
    backbone: WalkableBackbone,
    *,
    num_envs: int,
    val_images: int,
    val_repeats: int,
    budget_conditioning: bool,
) -> dict[str, float]:
    """Return the approximate bytes of the episodes in training and in validation, by setting.

    Args:
        backbone: The backbone.
        num_envs: Number of parallel episodes.
        val_images: Number of images in the val split.
        val_repeats: Episodes per image for a budget-conditioned gate; other gates run one.
        budget_conditioning: True for one gate for all budgets.
    """
    layers = backbone.costs.n_layers
    seen = (
        _KEPT
        * layers
        * observation_bytes(observation_space(backbone, budget_conditioning=budget_conditioning))
    )
    rows = val_images * (val_repeats if budget_conditioning else 1)
    pixels = 1
    for side in backbone.image_shape:
        pixels *= side
    return {
        f"num_envs is {num_envs}": float(num_envs * (forward_bytes(backbone) + seen)),
        f"val_repeats is {val_repeats}": float(rows * (pixels + 8 * _KEPT * layers)),
    }


def replay_needs(
    config: AlgorithmConfig, backbone: WalkableBackbone, *, budget_conditioning: bool
) -> dict[str, float]:
    """Return the approximate bytes of a replay buffer and of a batch from it, by setting."""
    if not isinstance(config, QLearningConfig):
        return {}
    seen = observation_bytes(observation_space(backbone, budget_conditioning=budget_conditioning))
    quantiles = config.n_quantiles if isinstance(config, QRDQNConfig) else 1
    # of the Huber loss, between every two quantiles
    pairs = _FLOAT * (backbone.costs.n_actions * quantiles + quantiles**2)
    needs = {f"batch_size is {config.batch_size}": float(config.batch_size * _KEPT * seen)}
    if config.buffer_size is not None:
        needs[f"buffer_size is {config.buffer_size}"] = float(
            config.buffer_size * transition_bytes(seen)
        )
    if quantiles > 1:
        needs[f"n_quantiles is {quantiles}"] = float(_KEPT * config.batch_size * pairs)
    return needs
