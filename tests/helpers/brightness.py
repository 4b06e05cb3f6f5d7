"""Small data set of classes that differ in brightness."""

import torch

from dfs_rl.data import Dataset, ImageSet


def brightness(n: int = 36) -> Dataset:
    """Return three classes and splits of ``n`` images of 1 x 8 x 8 pixels."""
    generator = torch.Generator().manual_seed(0)

    def images() -> ImageSet:
        labels = torch.arange(n) % 3
        noise = torch.randint(50, (n, 1, 8, 8), generator=generator)
        return ImageSet((noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels)

    splits = {name: images() for name in ("train", "agent", "val", "test")}
    return Dataset(name="brightness", class_names=("a", "b", "c"), flip=True, **splits)
