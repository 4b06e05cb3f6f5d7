"""Images of two classes that differ in brightness."""

import torch

import dfs_rl
from dfs_rl.data import Dataset, ImageSet


@dfs_rl.register_dataset("toy_lights")
def lights():
    labels = torch.arange(256) % 2
    noise = torch.randint(0, 100, (256, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = ImageSet((noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels)
    train, agent, val, test = map(images.subset, torch.arange(256).split([128, 64, 32, 32]))
    splits = {"train": train, "agent": agent, "val": val, "test": test}
    return Dataset(name="toy_lights", class_names=("dark", "bright"), flip=False, **splits)
