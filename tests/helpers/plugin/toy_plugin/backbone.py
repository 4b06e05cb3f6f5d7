"""Plain residual network, narrow enough for a test."""

from torch import nn

import dfs_rl
from dfs_rl.backbones import Network, NetworkConfig
from dfs_rl.backbones.network import stem_convolution
from dfs_rl.backbones.resnet import ResidualBlock
from dfs_rl.quantization import FractionalLinear
from dfs_rl.utils.config import configuration


@configuration
class PlainConfig(NetworkConfig):
    width: int = 4


@dfs_rl.register_backbone("toy_plain", PlainConfig)
class Plain(Network):
    family = "toy_plain"

    def __init__(self, config, statistics):
        super().__init__(config, statistics)
        self.first = stem_convolution(config)
        blocks = (ResidualBlock(config.width, config.width, config.run_bits) for _ in range(2))
        self.blocks = nn.ModuleList(blocks)
        self.classifier = FractionalLinear(config.width, config.n_classes, bits=config.stem_bits)
        self.finish_making()

    def stem(self, images):
        return self.first(self.normalise(images), self.stem_bits).relu()
