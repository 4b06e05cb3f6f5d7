"""Splits and classes of a folder, by the names of its files and folders."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dfs_rl.errors import DataError

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
TABLE_SUFFIX = ".parquet"
# Copied from the ``datasets`` library, whose import is slow; a test compares the two.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|[\W_]+")
# End of a shard's name, as in train-00000-of-00002-0123456789abcdef.parquet.
_SHARD = re.compile(r"[-._ ]?\d+(?:[-._ ]of[-._ ](?P<count>\d+))?(?:-[0-9a-f]{16})?$")
_SHOWN = 12  # names in a message
_LOG = logging.getLogger(__name__)

Place = tuple[str, ...]
"""Parts of a path, relative to the folder of the data set."""
Tree = Mapping[Place, list[str]]
"""Names of the image and parquet files in every folder."""


class SplitLabel(NamedTuple):
    """Split that a name refers to, or None, and the other words of the name in lower case."""

    split: str | None
    rest: tuple[str, ...]


def read_split_label(name: str) -> SplitLabel:
    """Find a split word in a name, in any case: ``Training_set`` is ``train`` with rest ``set``.

    A name with words of two splits refers to neither.
    """
    words = _BORDER.sub(" ", name).lower().split()
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(splits) == 1:
        return SplitLabel(splits.pop(), tuple(word for word in words if word not in SPLIT_WORDS))
    return SplitLabel(None, tuple(words))


def read_tree(folder: Path) -> Tree:
    """List the image and parquet files in ``folder`` and below, except hidden ones."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from error

    suffixes = (*IMAGE_SUFFIXES, TABLE_SUFFIX)
    tree = {}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        path = Path(parent)
        place = path.parts[len(folder.parts) :]
        parents = path.parents[: len(place)]
        if path.is_symlink() and path.resolve() in [outer.resolve() for outer in parents]:
            raise DataError(f"{path} is a link to one of its parent folders; remove the link.")
        folders[:] = [name for name in folders if not name.startswith(".")]
        tree[place] = sorted(
            name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
        )
    return tree


def table_splits(folder: Path, tree: Tree) -> tuple[list[Path], list[Path] | None]:
    """Return the parquet files of the train split and, if there is one, of the test split.

    Splits are recognized by the names of files and sub-folders, see ``load_dataset``. Unclear
    names, missing files and class folders of images are errors.
    """
    labels: dict[str, SplitLabel] = {}
    parts: dict[str, list[Path]] = {}
    for place, names in sorted(tree.items()):
        tables = [name for name in names if name.lower().endswith(TABLE_SUFFIX)]
        if place and len(tables) < len(names):
            raise DataError(
                f"{folder} contains parquet files and also images ({folder.joinpath(*place)}); "
                "give a folder with one of the two."
            )
        for name in tables:
            stem = _SHARD.sub("", name[: -len(TABLE_SUFFIX)])
            outer, inner = read_split_label(" ".join(place)), read_split_label(stem)
            if outer.split and inner.split not in (None, outer.split):
                raise DataError(
                    f"{folder.joinpath(*place, name)} is named like both {outer.split} and "
                    f"{inner.split}; rename it or its folder."
                )
            # Any file name is valid in the folder of a split.
            words = place if outer.split else (*place, stem or name)
            part = "/".join(words)
            labels[part] = read_split_label(" ".join(words))
            parts.setdefault(part, []).append(folder.joinpath(*place, name))
    train, test = pick_splits(str(folder), labels)
    chosen = parts[train], None if test is None else parts[test]
    for files in filter(None, chosen):
        _check_shards(files)
    return chosen


def _check_shards(files: Sequence[Path]) -> None:
    """Check that a split has all of its shards, and those of one write only."""
    matches = [_SHARD.search(path.name[: -len(TABLE_SUFFIX)]) for path in files]
    counts = {match["count"] for match in matches if match} - {None}
    if counts and (len(counts) > 1 or len(files) != int(*counts)):
        raise DataError(
            f"{files[0]} is one of {' or of '.join(sorted(counts))} files by its name, but there "
            f"are {len(files)}; give a folder with all the files of one write."
        )
    for path in files:
        if not path.is_file():  # reading a pipe or a device may never end
            raise DataError(f"{path} is no regular file; parquet files must be.")


def image_splits(folder: Path, tree: Tree) -> tuple[Place, Place | None]:
    """Return the places of the train folder and, if there is one, of the test folder.

    A top folder is a split if it is named like one (``Train``, ``testing``, ``seg_train``) and
    contains class folders. Without such a folder, the top folders are the classes of ``()``. Names
    that leave open which folders are classes and which are splits are errors.
    """
    tops = sorted({place[0] for place in tree if place})
    flat = [top for top in tops if tree[top,]]
    labels = {top: read_split_label(top) for top in tops}
    named = [top for top in tops if labels[top].split]
    # "train_station" with images, next to other classes, is a class; "train" is ambiguous.
    bare = [top for top in named if all(word.isdigit() for word in labels[top].rest)]
    if not named or (len(named) < len(tops) and not bare and set(named) <= set(flat)):
        report_unused(str(folder), tree[()])
        return (), None
    if flat:
        raise DataError(
            f"{folder} contains {few(named)}, named like a split, but images are in {few(flat)} "
            "without class folders; if these are splits, move their images into class folders "
            "(train/class/name.jpg) and other images elsewhere; if all are classes, move them into "
            "one folder called train."
        )
    filled = {place[0] for place, files in tree.items() if place and files}
    train, test = pick_splits(
        str(folder), {top: labels[top] for top in tops if top in filled or top in named}
    )
    return (train,), None if test is None else (test,)


def class_files(folder: Path, tree: Tree, split: Place) -> dict[str, list[Path]]:
    """Return the image files of each class of a split, both sorted by name.

    A class without an image, and classes that may be the folders of another level, are errors.
    """
    depth, origin = len(split), folder.joinpath(*split)
    classes: dict[str, list[Place]] = {}
    inner: dict[str, set[str]] = {}  # sub-folders with images of each class folder
    for place, names in tree.items():
        if place[:depth] == split != place:
            name = place[depth]
            classes.setdefault(name, []).extend((*place, file) for file in names)
            if names:
                inner.setdefault(name, set()).update(place[depth + 1 : depth + 2])
    if not classes:
        raise DataError(
            f"{origin} contains neither train*.parquet nor class folders with images; allowed are "
            "parquet files, class/name.jpg, or train/class/name.jpg with test/class/name.jpg."
        )
    splits = [f"{name}/{sub}" for name in inner for sub in inner[name] if read_split_label(sub)[0]]
    if splits or (inner and all(read_split_label(name).split for name in inner)):
        raise DataError(
            f"{origin} contains {few(sorted(splits or inner))}, named like splits, where class "
            "folders or images should be; give the folder that contains train and test, or rename "
            "the folders."
        )
    counts = Counter(sub for subs in inner.values() for sub in subs)
    shared = sorted(sub for sub, count in counts.items() if count > 1)
    if len(shared) > 1:
        outer = sorted(name for name, subs in inner.items() if subs.intersection(shared))
        raise DataError(
            f"{few(outer)} in {origin} contain the same folders ({few(shared)}), and either level "
            "could be the classes; give the folder whose folders are the classes, or call the "
            "outer ones train and test."
        )
    for name, files in classes.items():
        if not files:
            others = sorted(path.name for path in (origin / name).iterdir())
            instead = f", but {few(others)}" if others else ""
            raise DataError(
                f"class folder {origin / name} contains no image{instead}; names must end in one "
                f"of {' '.join(IMAGE_SUFFIXES)}."
            )
    return {name: [folder.joinpath(*f) for f in sorted(classes[name])] for name in sorted(classes)}


def pick_splits(origin: str, labels: Mapping[str, SplitLabel]) -> tuple[str, str | None]:
    """Return the names of the train part and, if there is one, of the test part.

    Other parts are not used, which is logged. Several parts of one split, or of different variants
    of the data, are errors, since they may share images.
    """
    named = {part: label for part, label in labels.items() if label.split}
    splits = {label.split: part for part, label in named.items()}
    if len(splits) < len(named) or len({label.rest for label in named.values()}) > 1:
        raise DataError(
            f"{origin} contains {few(sorted(named))}, more than one set of splits, whose images "
            "may be the same; give a folder with at most one train, one test and one val, named "
            "alike (train and test, or small_train and small_test), or the folder of one set."
        )
    if "train" not in splits:
        raise DataError(
            f"{origin} contains {few(sorted(labels))} but no train split; name it train, as in "
            f"train{TABLE_SUFFIX} or train/class/name.jpg, next to an optional test."
        )
    chosen = splits["train"], splits.get("test")
    report_unused(origin, set(labels) - set(chosen))
    return chosen


def report_unused(origin: str, parts: Iterable[str]) -> None:
    """Log the unused parts of a data set."""
    if unused := few(sorted(parts)):
        _LOG.warning(
            "Not used of %s: %s (agent and val are carved from the train images).", origin, unused
        )


def few(values: Iterable[object]) -> str:
    """Join values for a message, at most the first twelve."""
    items = [str(value) for value in values]
    rest = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
