"""Sources of data sets: labels, class names and encoded images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_rl.data.decode import EncodedImage
from dfs_rl.data.images import check_text
from dfs_rl.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Train or test images of a data set.

    Attributes:
        origin: Location of the source, for messages.
        labels: Class of every row, int64 ``[n]``, not negative.
        class_names: Name of each class, or None if the source has only numbers.
        read: Function that yields the rows selected by a mask, bool ``[n]``, in order.

    Raises:
        DataError: If the source is empty, a label is negative or has no class name, or a class name
            is not UTF-8.
    """

    origin: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    read: Callable[[NDArray[np.bool_]], Iterator[EncodedImage]]

    def __post_init__(self) -> None:
        check_text(*(self.class_names or ()))
        if not len(self.labels):
            raise DataError(f"{self.origin} holds no images.")
        row = int(self.labels.argmin())
        if self.labels[row] < 0:
            raise DataError(
                f"{self.origin} has label {self.labels[row]} in row {row}, as sources do that "
                "withhold their labels; labels must be 0 or more."
            )
        row = int(self.labels.argmax())
        if self.class_names is not None and self.labels[row] >= len(self.class_names):
            raise DataError(
                f"{self.origin} has label {self.labels[row]} in row {row} but names only "
                f"{len(self.class_names)} classes; allowed are 0 to {len(self.class_names) - 1}."
            )


class Sources(NamedTuple):
    """Sources of a data set as published.

    Attributes:
        name: Name of the data set.
        train: Train images.
        test: Test images, or None if the data set has no test split.
    """

    name: str
    train: Source
    test: Source | None
