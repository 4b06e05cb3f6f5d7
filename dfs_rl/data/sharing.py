"""A data set in Ray's object store: loaded once, then mapped into every worker process instead of being read or copied again."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.data.images import SPLIT_NAMES, Dataset, ImageSet, SplitName


class SharedSplit(NamedTuple):
    """One split as arrays, which the object store keeps outside of any process.

    Attributes:
        images: uint8 ``[n, c, h, w]``.
        labels: int64 ``[n]``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class SharedDataset(NamedTuple):
    """A data set as arrays.

    Attributes:
        name: Its name.
        class_names: Name of each class.
        splits: Its splits by name.
        flip: Whether a mirrored image keeps its class.
        image_size: See ``Dataset``.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[SplitName, SharedSplit]
    flip: bool
    image_size: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for split in self.splits.values() for array in split)


def share(dataset: Dataset) -> SharedDataset:
    """Return a data set's arrays, without a copy."""
    splits = {
        name: SharedSplit(dataset.split(name).images.numpy(), dataset.split(name).labels.numpy())
        for name in SPLIT_NAMES
    }
    return SharedDataset(
        dataset.name, dataset.class_names, splits, dataset.flip, dataset.image_size
    )


def unshare(shared: SharedDataset) -> Dataset:
    """Return the data set that ``share`` was given, without a copy; nobody may write to its images."""
    with warnings.catch_warnings():
        # The store's memory cannot be written to, which torch has no word for; no code here writes to a data set.
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
