"""Backbones: networks of fixed and of adaptive depth, users' own models, registry, storage."""

from pathlib import Path

from dfs_rl.backbones.base import Backbone, InferenceBackbone
from dfs_rl.backbones.conversion.backbone import Fractionalized
from dfs_rl.backbones.conversion.convert import fractionalize
from dfs_rl.backbones.interfaces import GatedBackbone
from dfs_rl.backbones.mobilenet import AdaptiveMobileNet, AdaptiveMobileNetConfig
from dfs_rl.backbones.network import Network, NetworkConfig
from dfs_rl.backbones.registry import register_backbone
from dfs_rl.backbones.resnet import AdaptiveResNet, AdaptiveResNetConfig, ResNet, ResNetConfig
from dfs_rl.backbones.storage import (
    BackboneInfo,
    StoredBackbone,
    load_backbone,
    load_stored_backbone,
    save_backbone,
)
from dfs_rl.backbones.swin import AdaptiveSwin, AdaptiveSwinConfig
from dfs_rl.backbones.vit import (
    AdaptiveVisionTransformer,
    AdaptiveVisionTransformerConfig,
    VisionTransformer,
    VisionTransformerConfig,
)

PRETRAINED_DIGITS = Path(__file__).parent / "pretrained" / "digits"
"""The small supernet for scikit-learn's digits that ships with the package."""


def default_digits() -> Backbone:
    """Load the digits supernet that ships with the package."""
    return load_backbone(PRETRAINED_DIGITS)


__all__ = [
    "PRETRAINED_DIGITS",
    "AdaptiveMobileNet",
    "AdaptiveMobileNetConfig",
    "AdaptiveResNet",
    "AdaptiveResNetConfig",
    "AdaptiveSwin",
    "AdaptiveSwinConfig",
    "AdaptiveVisionTransformer",
    "AdaptiveVisionTransformerConfig",
    "Backbone",
    "BackboneInfo",
    "Fractionalized",
    "GatedBackbone",
    "InferenceBackbone",
    "Network",
    "NetworkConfig",
    "ResNet",
    "ResNetConfig",
    "StoredBackbone",
    "VisionTransformer",
    "VisionTransformerConfig",
    "default_digits",
    "fractionalize",
    "load_backbone",
    "load_stored_backbone",
    "register_backbone",
    "save_backbone",
]
