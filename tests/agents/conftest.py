"""A planted task: every image says in its colours how many bits each layer must spend on it."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dfs_rl.backbones.contract import GatedLayer
from dfs_rl.cost import BitOptions, CostTable
from dfs_rl.data import ImageSet

LAYERS = 2
MENU = (0, 16, 32)


class PayingLayer:
    """Pays off as much of an image's debt to this layer as the option allows; skipping pays nothing."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor, bits: int) -> Tensor:
        paid = MENU.index(bits) * 1.0
        hidden = hidden.clone()
        hidden[:, 1 + self.layer] = (hidden[:, 1 + self.layer] - paid).clamp(min=0.0)
        return hidden


class PlantedBackbone:
    """Classifies an image rightly only if every layer ran at the option that its channels ask for, or a dearer one.

    Channel 0 is the label, channels 1 and 2 the option that layers 0 and 1 need. No table of options is right for all images.
    """

    options = BitOptions(MENU)
    costs = CostTable(options=BitOptions(MENU), layer_macs=(100, 100))
    feature_sizes = (3, 3)
    feature_macs = 0.0
    image_shape = (3, 4, 4)
    n_classes = 2
    feature_mean = torch.tensor([[0.5, 1.0, 1.0]] * LAYERS)
    feature_std = torch.tensor([[0.5, 0.8, 0.8]] * LAYERS)

    @property
    def layers(self) -> Sequence[GatedLayer]:
        return [PayingLayer(layer) for layer in range(LAYERS)]

    def stem(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3), keepdim=True)

    def head(self, hidden: Tensor) -> Tensor:
        label = hidden[:, 0, 0, 0]
        debt = hidden[:, 1:, 0, 0].sum(dim=1)
        side = torch.where(debt > 0, -1.0, 1.0) * (2.0 * label - 1.0)  # [batch]
        return 3.0 * torch.stack([-side, side], dim=1)

    def feature(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden.mean(dim=(2, 3))


@pytest.fixture
def planted_backbone() -> PlantedBackbone:
    return PlantedBackbone()


@pytest.fixture
def planted_images() -> ImageSet:
    """Every combination of label and needs, 18 images."""
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3))
    images = grid.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return ImageSet(images=images, labels=grid[:, 0].clone())
