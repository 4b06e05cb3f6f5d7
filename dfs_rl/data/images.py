"""Labelled images in memory: one split (``ImageSet``), or all four (``Dataset``)."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_rl.errors import DataError
from dfs_rl.utils.constants import Corruptions

SplitName = Literal["train", "agent", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)

MIN_SIDE = 4
MAX_CHANNELS = 4
MIN_CLASSES = 2


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels.

    Pickling stores arrays, which Ray's object store shares between processes without a copy.

    Attributes:
        images: Pixels, uint8 ``[n, c, h, w]``, with 1 to 4 channels and sides of at least 4 pixels.
        labels: Class of every image, int64 ``[n]``, on the same device.

    Raises:
        DataError: If a shape, type or device is invalid.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:  # noqa: PLR2004 - [n, c, h, w]
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}; they must be uint8 [n, c, h, w]."
            )
        _, channels, height, width = images.shape
        if not 1 <= channels <= MAX_CHANNELS or min(height, width) < MIN_SIDE:
            raise DataError(
                f"images are {channels} x {height} x {width} (channels x height x width); allowed "
                f"are 1 to {MAX_CHANNELS} channels and sides of at least {MIN_SIDE} pixels."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels are {labels.dtype} {list(labels.shape)}; they must be int64 "
                f"[{len(images)}], one per image."
            )
        if labels.device != images.device:
            raise DataError(
                f"images are on {images.device} and labels on {labels.device}; both must be on one "
                "device."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[object, ...]:
        return _from_arrays, (self.images.cpu().numpy(), self.labels.cpu().numpy())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return a copy of the images at ``indices``, int64 ``[m]``, in that order."""
        indices = indices.to(self.images.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on ``device``, without a copy if it is already there."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def _from_arrays(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> ImageSet:
    with warnings.catch_warnings():
        # The store's memory is read-only, which torch cannot express; no code writes to a data set.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Named data set in memory with four splits: 178 MB for CIFAR-10, 0.1 MB for the digits.

    Attributes:
        name: Name for reports: ``digits``, the name of the folder, or the hub id.
        class_names: Name of each class, by label.
        train: Split that trains the backbone.
        agent: Split that trains gates; disjoint from ``train``, on which a backbone is nearly
            perfect.
        val: Split for selection, early stopping and sweeps.
        test: Split that is reported once.
        flip: Whether training mirrors half of the images, since a mirrored image keeps its class.
        image_size: Height and width in pixels to which the images were resized and cropped; None
            for the original size.
        corruptions: Stream that agent, val and test are; train is always clean.
        original: Clean data set that the stream was made of; None for a clean one.

    Raises:
        DataError: If a split is empty, the splits' images differ in shape, labels do not fit the
            class names, or a name is not UTF-8.
    """

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    agent: ImageSet
    val: ImageSet
    test: ImageSet
    flip: bool
    image_size: int | None = None
    corruptions: Corruptions = "none"
    original: "Dataset | None" = None

    def __post_init__(self) -> None:
        if len(self.class_names) < MIN_CLASSES:
            raise DataError(
                f"data set {self.name!r} has the classes {list(self.class_names)}; at least "
                f"{MIN_CLASSES} are needed."
            )
        check_text(self.name, *self.class_names)
        for name in SPLIT_NAMES:
            split = self.split(name)
            if not len(split):
                raise DataError(
                    f"split {name!r} of data set {self.name!r} is empty; every split needs images."
                )
            if split.image_shape != self.train.image_shape:
                raise DataError(
                    f"split {name!r} of data set {self.name!r} has images {split.image_shape}, "
                    f"split 'train' {self.train.image_shape}; all must have one shape."
                )
            lowest, highest = int(split.labels.min()), int(split.labels.max())
            if lowest < 0 or highest >= self.n_classes:
                raise DataError(
                    f"split {name!r} of data set {self.name!r} has labels {lowest} to {highest}; "
                    f"allowed are 0 to {self.n_classes - 1}."
                )

    def split(self, name: SplitName) -> ImageSet:
        """Return a split by name."""
        if name not in SPLIT_NAMES:
            raise DataError(f"{name!r} is not a split; allowed are {list(SPLIT_NAMES)}.")
        split: ImageSet = getattr(self, name)
        return split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.image_shape

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def clean(self) -> "Dataset":
        """The data set without corruptions, which backbones are made for."""
        return self.original or self

    @property
    def memory_bytes(self) -> int:
        """Memory of the images and labels of all splits in bytes, the original's included."""
        parts = {data.split(name) for data in (self, self.clean) for name in SPLIT_NAMES}
        return sum(part.images.nbytes + part.labels.nbytes for part in parts)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all pixels, labels, class names and splits, 16 hexadecimal digits.

        That of a stream is of the clean data set and its corruptions, whose pixels may differ by
        rounding between machines.
        """
        if self.original is not None:
            text = f"{self.original.fingerprint} {self.corruptions}"
            return hashlib.sha256(text.encode()).hexdigest()[:16]
        digest = hashlib.sha256(repr((self.image_shape, self.class_names)).encode())
        for name in SPLIT_NAMES:
            split = self.split(name)
            digest.update(f"{name} {len(split)}".encode())
            digest.update(split.labels.cpu().contiguous().numpy().data)
            digest.update(split.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


def check_text(*names: str) -> None:
    """Raise DataError for a name that is not UTF-8, as of a folder in another encoding."""
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise DataError(
                f"the name {name!a} of a data set or class is not UTF-8, in which runs store it; "
                "rename it."
            )
