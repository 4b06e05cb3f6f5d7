"""Image folders: one folder per class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_rl.data.decode import EncodedImage
from dfs_rl.data.source import Source, Sources
from dfs_rl.errors import DataError

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)


def folder_sources(folder: Path) -> Sources:
    """Find images as ``class/name.jpg``, or ``train/class/name.jpg`` and ``test/class/name.jpg``.

    Files that are no images by their name are left out, and so are hidden files and folders.
    Classes are numbered in the order of their names.

    Raises:
        DataError: If there are no class folders, or one of them holds no image.
    """
    name = folder.resolve().name
    train = folder / "train"
    if not (train.is_dir() and _subfolders(train)):
        return Sources(name, _folder_source(folder), None)
    test = folder / "test"
    return Sources(name, _folder_source(train), _folder_source(test) if test.is_dir() else None)


def _folder_source(folder: Path) -> Source:
    classes = _subfolders(folder)
    if not classes:
        raise DataError(
            f"{folder} holds neither train*.parquet nor class folders with images; allowed are "
            "parquet files, class/name.jpg, or train/class/name.jpg with test/class/name.jpg."
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(classes):
        found = _images(class_folder)
        if not found:
            raise DataError(
                f"class folder {class_folder} holds no image; names must end in one of "
                f"{' '.join(IMAGE_SUFFIXES)}."
            )
        files += found
        labels += [label] * len(found)

    def read(wanted: NDArray[np.bool_]) -> Iterator[EncodedImage]:
        for row in np.flatnonzero(wanted).tolist():
            yield EncodedImage(row, files[row], str(files[row]))

    return Source(
        origin=str(folder),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(path.name for path in classes),
        read=read,
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{folder} cannot be read ({error.strerror}).") from error

    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    )
