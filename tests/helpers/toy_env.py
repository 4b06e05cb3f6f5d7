"""Problem on ``ToyBackbone``, small enough for exact comparisons."""

import torch

from dfs_rl.data import ImageSet
from dfs_rl.gating.reward import RewardWeights
from tests.helpers.toy_backbone import ToyBackbone, toy_images

N_IMAGES = 40
WEIGHTS = RewardWeights(cost=20.0, overshoot=3.0)


def toy_image_set() -> ImageSet:
    labels = torch.randint(0, 3, (N_IMAGES,), generator=torch.Generator().manual_seed(1))
    return ImageSet(toy_images(N_IMAGES), labels)


def toy_kwargs(**changes) -> dict:
    """Return keyword arguments for any of the environments."""
    return {"backbone": ToyBackbone(), "dataset": toy_image_set(), "reward": WEIGHTS, **changes}
