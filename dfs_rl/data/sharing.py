"""Sharing of a data set through Ray's object store, without a copy per worker process."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.data.images import SPLIT_NAMES, Dataset, ImageSet, SplitName


class SharedSplit(NamedTuple):
    """Split as arrays for the object store.

    Attributes:
        images: Pixels, uint8 ``[n, c, h, w]``.
        labels: Class of every image, int64 ``[n]``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class SharedDataset(NamedTuple):
    """Data set as arrays for the object store.

    Attributes:
        name: Name of the data set.
        class_names: Name of each class, in label order.
        splits: Splits by name.
        flip: Whether training mirrors half of the images.
        image_size: Height and width in pixels to which the images were resized, or None.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[SplitName, SharedSplit]
    flip: bool
    image_size: int | None

    @property
    def nbytes(self) -> int:
        """Memory of all arrays in bytes."""
        return sum(array.nbytes for split in self.splits.values() for array in split)


def share(dataset: Dataset) -> SharedDataset:
    """Return the arrays of a data set, without a copy."""
    splits = {
        name: SharedSplit(dataset.split(name).images.numpy(), dataset.split(name).labels.numpy())
        for name in SPLIT_NAMES
    }
    return SharedDataset(
        dataset.name, dataset.class_names, splits, dataset.flip, dataset.image_size
    )


def unshare(shared: SharedDataset) -> Dataset:
    """Return the data set of shared arrays, without a copy; its images are read-only."""
    with warnings.catch_warnings():
        # The store's memory is read-only, which torch cannot express; no code writes to a data set.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        splits = {
            name: ImageSet(torch.from_numpy(split.images), torch.from_numpy(split.labels))
            for name, split in shared.splits.items()
        }
    return Dataset(
        name=shared.name,
        class_names=shared.class_names,
        **splits,
        flip=shared.flip,
        image_size=shared.image_size,
    )
