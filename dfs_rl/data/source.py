"""What a source offers before anything is decoded: labels, class names, encoded images."""

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
    """The train or the test images of a data set.

    Attributes:
        origin: Where it is, for messages.
        labels: int64 ``[n]``, class of every row, not negative.
        class_names: Name of each class, or None where the source has only numbers.
        read: Yields the rows for which the argument, bool ``[n]``, is set, in order.

    Raises:
        DataError: If it is empty, a label is negative or has no class name, or a class name has no
            UTF-8 form.
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
    """The images of a data set as they were published: train, and test where there is one."""

    name: str
    train: Source
    test: Source | None
