"""Problem with a known best static table: each image depends on one layer and one option."""

import torch
from torch import Tensor

from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet

BIT_OPTIONS = (0, 8, 16, 32)
NEEDS = ((0, 2, 10), (1, 3, 4), (2, 1, 6))
"""Layer, smallest sufficient option (an index), and number of such images."""
BUDGET = 11.0
BEST_TABLE = (2, 0, 1)
"""Best table under ``BUDGET``: 16 of 20 images are correct.

Its computation is (1/4 + 1/16) / 3; 32 bit in layer 1 exceed the budget.
"""
BEST_ACCURACY = 80.0
UNIFORM_ACCURACY = 30.0
"""Accuracy at 8 bit in all layers, to which every uniform table is lowered.

An expensive table is lowered layer by layer, in rounds.
"""


class ThresholdLayer:
    """Layer that marks the images that need a larger option of it."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        short = (hidden[:, 0] == self.layer) & (hidden[:, 1] > BIT_OPTIONS.index(bits))
        hidden = hidden.clone()
        hidden[:, 2] = torch.where(short, 1.0, hidden[:, 2])
        return hidden


class TableBackbone:
    """Three layers of equal cost.

    The pixels of an image contain the layer that it depends on and the smallest sufficient option.
    All labels are 0.
    """

    options = BitOptions(BIT_OPTIONS)
    costs = CostTable(options=options, layer_macs=(64, 64, 64))
    feature_sizes = (3, 3, 3)
    feature_macs = 0.0
    image_shape = (3, 4, 4)
    n_classes = 2
    feature_mean = torch.zeros(3, 3)
    feature_std = torch.ones(3, 3)

    def __init__(self) -> None:
        self.layers = [ThresholdLayer(layer) for layer in range(3)]

    def stem(self, images: Tensor) -> Tensor:
        return images.float()

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3))

    def head(self, hidden: Tensor) -> Tensor:
        wrong = hidden[:, 2, 0, 0]
        return torch.stack([1.0 - wrong, wrong], dim=1)


def table_images() -> ImageSet:
    rows = [(layer, option, 0) for layer, option, n in NEEDS for _ in range(n)]
    pixels = torch.tensor(rows, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)
    return ImageSet(pixels.contiguous(), torch.zeros(len(rows), dtype=torch.int64))
