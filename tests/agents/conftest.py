"""A planted task: every image says in its colours how many bits each layer must spend on it."""

from collections.abc import Sequence

import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from torch import Tensor

from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.hyperparameters import AlgorithmConfig
from dfs_rl.backbones.interfaces import GatedLayer, WalkableBackbone
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.gating.reward import RewardWeights

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

    Channel 0 is the label, channels 1 and 2 the option that layers 0 and 1 need. No table of
    options is right for all images.
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


def small_agent(
    backbone: WalkableBackbone,
    images: ImageSet,
    config: AlgorithmConfig,
    weights: RewardWeights | None = None,
    *,
    group: int = 8,
) -> BaseAlgorithm:
    """An algorithm on 32 walks of the planted task, logging nowhere: 64 steps an update."""
    task = Task(
        backbone=backbone,
        images=images,
        reward=weights or RewardWeights(),
        budget=None,
        class_names=("no", "yes"),
    )
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=backbone.feature_sizes,
        hidden=4,
        group_size=group,
        seed=0,
        device="cpu",
    )
    env = SB3GatingVecEnv(task, 32, group_size=group, seed=0)
    model = build_algorithm(config, env, learning)
    model.set_logger(Logger(None, []))
    return model
