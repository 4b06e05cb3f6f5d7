"""Memory that the settings of a gate's training ask for, estimated before anything is made."""

from dfs_rl.agents.gate_export import RECURRENT_WIDTH, gate_shape
from dfs_rl.agents.hyperparameters import (
    AlgorithmConfig,
    BuiltKind,
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
"""Of a gate's weights: actor and critic with gradients and moments; validated and kept gates."""
_KEPT = 8
"""Copies of hidden activations, observations and records that are alive at once."""


def gate_needs(
    backbone: WalkableBackbone,
    *,
    kind: BuiltKind,
    features: FeatureChoice,
    hidden: int | None,
    budget_conditioning: bool,
    decisions: int,
    outputs: int = 1,
) -> dict[str, float]:
    """Return about how many bytes a gate takes while it learns.

    Args:
        backbone: The network.
        kind: See ``untrained_gate``.
        features: See ``untrained_gate``.
        hidden: Its width; ``None`` for the default.
        budget_conditioning: One gate for all budgets.
        decisions: What it learns from at once.
        outputs: Numbers for each option.
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
    """Return about how many bytes the walks of a training and of its validations take.

    Args:
        backbone: The network.
        num_envs: Walks side by side.
        val_images: Images of the val split.
        val_repeats: How often each is walked.
        budget_conditioning: Whether the gate is one for all budgets; others walk each image once.
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
    """Return the approximate bytes of a replay buffer and a batch from it, by setting."""
    if not isinstance(config, QLearningConfig):
        return {}
    seen = observation_bytes(observation_space(backbone, budget_conditioning=budget_conditioning))
    quantiles = config.n_quantiles if isinstance(config, QRDQNConfig) else 1
    pairs = _FLOAT * (backbone.costs.n_actions * quantiles + quantiles**2)  # of the Huber loss
    needs = {f"batch_size is {config.batch_size}": float(config.batch_size * _KEPT * seen)}
    if config.buffer_size is not None:
        needs[f"buffer_size is {config.buffer_size}"] = float(
            config.buffer_size * transition_bytes(seen)
        )
    if quantiles > 1:
        needs[f"n_quantiles is {quantiles}"] = float(_KEPT * config.batch_size * pairs)
    return needs
