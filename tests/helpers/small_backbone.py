"""A small untrained backbone for any data set."""

import torch

from dfs_rl.backbones import BackboneInfo, ResNet, ResNetConfig, StoredBackbone
from dfs_rl.data import Dataset, channel_statistics


def small_backbone(dataset: Dataset, **settings) -> StoredBackbone:
    torch.manual_seed(0)
    channels, height, width = dataset.image_shape
    shape = {"in_channels": channels, "n_classes": dataset.n_classes, "image_size": (height, width)}
    config = ResNetConfig(**({"depth": 8, "width": 4} | shape | settings))
    backbone = ResNet(config, channel_statistics(dataset.train.images)).eval()
    return StoredBackbone(backbone=backbone, info=BackboneInfo.of(dataset))
