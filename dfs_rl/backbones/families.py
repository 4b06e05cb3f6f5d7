"""The families of backbones by the name that stored ones carry; another family is one more entry."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dfs_rl.backbones.adaptive_mobilenet import AdaptiveMobileNet, AdaptiveMobileNetConfig
from dfs_rl.backbones.adaptive_resnet import AdaptiveResNet, AdaptiveResNetConfig
from dfs_rl.backbones.adaptive_swin import AdaptiveSwin, AdaptiveSwinConfig
from dfs_rl.backbones.base import Backbone
from dfs_rl.backbones.conversion.backbone import FractionalizeConfig, Fractionalized
from dfs_rl.backbones.conversion.convert import remake
from dfs_rl.backbones.resnet import ResNet, ResNetConfig
from dfs_rl.backbones.vit import (
    AdaptiveVisionTransformer,
    AdaptiveVisionTransformerConfig,
    VisionTransformer,
    VisionTransformerConfig,
)
from dfs_rl.data import ChannelStatistics


class Family(NamedTuple):
    """How to make a backbone again from what is stored.

    Attributes:
        config: Its configuration, a dataclass.
        backbone: Takes one, and the channel statistics.
    """

    config: type[Any]
    backbone: Callable[[Any, ChannelStatistics], Backbone]


FAMILIES = {
    ResNet.family: Family(ResNetConfig, ResNet),
    Fractionalized.family: Family(FractionalizeConfig, remake),
    AdaptiveResNet.family: Family(AdaptiveResNetConfig, AdaptiveResNet),
    AdaptiveMobileNet.family: Family(AdaptiveMobileNetConfig, AdaptiveMobileNet),
    AdaptiveSwin.family: Family(AdaptiveSwinConfig, AdaptiveSwin),
    VisionTransformer.family: Family(VisionTransformerConfig, VisionTransformer),
    AdaptiveVisionTransformer.family: Family(
        AdaptiveVisionTransformerConfig, AdaptiveVisionTransformer
    ),
}
