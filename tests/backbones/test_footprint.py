import torch
from torch import nn

from dfs_rl.backbones import ResNet, ResNetConfig
from dfs_rl.backbones.footprint import backward_bytes, forward_bytes
from dfs_rl.data import ChannelStatistics
from dfs_rl.quantization.modules import FractionalConv2d


def resnet(width: int) -> ResNet:
    config = ResNetConfig(
        depth=8, width=width, in_channels=1, n_classes=3, image_size=(8, 8), bits=(0, 4, 32)
    )
    return ResNet(config, ChannelStatistics(mean=(0.5,), std=(0.2,)))


def test_backward_keeps_inputs_of_all_convolutions():
    backbone, entered = resnet(4).eval(), []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | FractionalConv2d):
            module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].nbytes))
    backbone(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), (32,) * len(backbone.blocks))
    assert len(entered) == 7
    assert sum(entered) <= backward_bytes(backbone) < 50 * sum(entered)


def test_a_network_on_meta_is_measured_alike():
    with torch.device("meta"):
        shadow = resnet(4)
    assert backward_bytes(shadow) == backward_bytes(resnet(4))


def test_bytes_grow_with_the_width():
    assert backward_bytes(resnet(40)) > 8 * backward_bytes(resnet(4))
    assert forward_bytes(resnet(40)) > 8 * forward_bytes(resnet(4))
