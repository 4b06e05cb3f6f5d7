"""Images of two classes that differ in brightness."""

import torch

import dfs_rl
from dfs_rl.data import Dataset, ImageSet


@dfs_rl.register_dataset("toy_lights")
def lights():
    generator = torch.Generator().manual_seed(0)

    def images(n):
        labels = torch.arange(n) % 2
        noise = torch.randint(0, 100, (n, 1, 8, 8), generator=generator)
        return ImageSet((noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels)

    return Dataset(
        name="toy_lights",
        class_names=("dark", "bright"),
        train=images(128),
        agent=images(64),
        val=images(32),
        test=images(32),
        flip=False,
    )
