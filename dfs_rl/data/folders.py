"""Data sets as image folders, one folder per class."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_rl.data.decode import EncodedImage
from dfs_rl.data.layout import (
    IMAGE_SUFFIXES,
    Tree,
    few,
    pick_splits,
    read_split_label,
    report_unused,
)
from dfs_rl.data.source import Source, Sources
from dfs_rl.errors import DataError

_Place = tuple[str, ...]  # path parts relative to the data set's folder


def folder_sources(folder: Path, tree: Tree) -> Sources:
    """Find images as ``class/name.jpg`` or ``train/class/name.jpg``.

    A folder is a split if it is named like one (``Train``, ``testing``, ``seg_train``) and contains
    class folders; a test folder is optional. Classes are numbered in the order of their names.

    Args:
        folder: Folder of the data set.
        tree: Files of the folder.

    Returns:
        Train source and, if there is one, test source.

    Raises:
        DataError: If there are no class folders, a class folder has no image, or the names do not
            determine which folders are classes and which are splits.
    """
    name = folder.resolve().name
    tops = sorted({place[0] for place in tree if place})
    flat = [top for top in tops if tree[top,]]
    labels = {top: read_split_label(top) for top in tops}
    named = [top for top in tops if labels[top].split]
    # "train_station" with images, next to other classes, is a class; "train" is ambiguous.
    bare = [top for top in named if all(word.isdigit() for word in labels[top].rest)]
    if not named or (len(named) < len(tops) and not bare and set(named) <= set(flat)):
        report_unused(str(folder), sorted(tree[()]))
        return Sources(name, _folder_source(folder, tree, ()), None)
    if flat:
        raise DataError(
            f"{folder} holds {few(named)}, named like a split, but images lie in {few(flat)} "
            "without class folders; if these are splits, move their images into class folders "
            "(train/class/name.jpg), and what is none elsewhere; if all are classes, move them "
            "into one folder called train."
        )
    holding = {place[0] for place, files in tree.items() if place and files}
    parts = {top: labels[top] for top in tops if top in holding or top in named}
    train, test = pick_splits(str(folder), parts)
    return Sources(
        name,
        _folder_source(folder, tree, (train,)),
        None if test is None else _folder_source(folder, tree, (test,)),
    )


def _folder_source(folder: Path, tree: Tree, split: _Place) -> Source:
    depth = len(split)
    origin = folder.joinpath(*split)
    classes: dict[str, list[_Place]] = {}
    inner: dict[str, set[str]] = defaultdict(set)
    for place, names in tree.items():
        if place[:depth] != split or place == split:
            continue
        classes.setdefault(place[depth], []).extend((*place, name) for name in names)
        if names:
            inner[place[depth]].update(place[depth + 1 : depth + 2] or [""])
    if not classes:
        raise DataError(
            f"{origin} holds neither train*.parquet nor class folders with images; allowed are "
            "parquet files, class/name.jpg, or train/class/name.jpg with test/class/name.jpg."
        )
    _check_levels(origin, inner)
    files: list[_Place] = []
    labels: list[int] = []
    for label, name in enumerate(sorted(classes)):
        found = sorted(classes[name])
        if not found:
            raise DataError(
                f"class folder {origin / name} holds no image; names must end in one of "
                f"{' '.join(IMAGE_SUFFIXES)}."
            )
        files += found
        labels += [label] * len(found)

    def read(wanted: NDArray[np.bool_]) -> Iterator[EncodedImage]:
        for row in np.flatnonzero(wanted).tolist():
            path = folder.joinpath(*files[row])
            yield EncodedImage(row, path, str(path))

    return Source(
        origin=str(origin),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(sorted(classes)),
        read=read,
    )


def _check_levels(origin: Path, inner: dict[str, set[str]]) -> None:
    """Check that a level of folders has classes, not splits or repeated sets of classes.

    Args:
        origin: Parent folder of the class folders.
        inner: Sub-folders with images by class folder; an empty name is the class folder itself.

    Raises:
        DataError: If a folder may be a split, or the classes may be one level deeper.
    """
    for name, folders in sorted(inner.items()):
        splits = sorted(part for part in folders if read_split_label(part).split)
        if splits:
            raise DataError(
                f"{origin / name} would be a class, but holds {few(splits)}, named like a split; "
                f"give {origin / name} if that is the data set, or rename what is inside."
            )
    if inner and all(read_split_label(name).split for name in inner):
        raise DataError(
            f"{origin} holds {few(sorted(inner))}, named like splits, where class folders should "
            "be; give the folder that holds train and test."
        )
    counts = Counter(part for folders in inner.values() for part in folders if part)
    shared = sorted(part for part, count in counts.items() if count > 1)
    if len(shared) > 1:
        outer = sorted(name for name, folders in inner.items() if folders.intersection(shared))
        raise DataError(
            f"{few(outer)} in {origin} hold the same folders ({few(shared)}); "
            "either could be the classes. Give the folder whose folders are the classes, or call "
            "the outer ones train and test."
        )
