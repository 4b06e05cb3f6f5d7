"""Assignment of files to splits by the names of files and folders."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
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
_SHOWN = 12  # names in a message
_LOG = logging.getLogger(__name__)

Tree = Mapping[tuple[str, ...], list[str]]
"""Names of the image and parquet files in every folder, by the folder's relative path parts."""


class SplitLabel(NamedTuple):
    """Split that a name refers to.

    Attributes:
        split: Name of the split, or None.
        rest: Other words of the name, in lower case.
    """

    split: str | None
    rest: tuple[str, ...]


def read_split_label(name: str) -> SplitLabel:
    """Find a split word in a name: ``Training_set`` is ``train`` with the rest ``set``.

    The search ignores case. A name with words of two splits refers to neither.
    """
    words = [word for word in _BORDER.sub(" ", name).lower().split() if word]
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(splits) != 1:
        return SplitLabel(None, tuple(words))
    return SplitLabel(splits.pop(), tuple(word for word in words if word not in SPLIT_WORDS))


def read_tree(folder: Path) -> Tree:
    """List the image and parquet files in ``folder`` and below, except hidden ones.

    Raises:
        DataError: If a folder cannot be read, or a link leads to one of its parent folders.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from error

    suffixes = (*IMAGE_SUFFIXES, TABLE_SUFFIX)
    tree = {}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(parent)
        inside = place.parts[len(folder.parts) :]
        if inside and place.is_symlink():
            holders = {holder.resolve() for holder in place.parents[: len(inside)]}
            if place.resolve() in holders:
                raise DataError(f"{place} is a link to a folder that holds it; remove the link.")
        folders[:] = [name for name in folders if not name.startswith(".")]
        tree[inside] = [
            name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return tree


def pick_splits(origin: str, labels: Mapping[str, SplitLabel]) -> tuple[str, str | None]:
    """Return the names of the train part and, if there is one, of the test part.

    Other parts are not used, which is logged.

    Args:
        origin: Folder of the data set, for messages.
        labels: Split label of each part by its name.

    Raises:
        DataError: If there is no train part, several parts refer to one split, or parts belong to
            different variants of the data, which may share images.
    """
    named = {part: label for part, label in labels.items() if label.split}
    splits = {label.split: part for part, label in named.items()}
    if len(splits) < len(named) or len({label.rest for label in named.values()}) > 1:
        raise DataError(
            f"{origin} holds {few(sorted(named))}, more than one set of splits, whose images may "
            "be the same; give a folder with one train, one test and one val at most, named alike "
            "(train and test, or small_train and small_test), or the folder of one set."
        )
    if "train" not in splits:
        raise DataError(
            f"{origin} holds {few(sorted(labels))} but no train split; name it train, as in "
            f"train{TABLE_SUFFIX} or train/class/name.jpg, and perhaps test beside it."
        )
    chosen = splits["train"], splits.get("test")
    report_unused(origin, sorted(set(labels) - set(chosen)))
    return chosen


def report_unused(origin: str, parts: Iterable[str]) -> None:
    """Log the unused parts of a data set."""
    if unused := few(parts):
        _LOG.warning(
            "Not used of %s: %s (agent and val are carved from the train images).", origin, unused
        )


def few(values: Iterable[object]) -> str:
    """Join values for a message, at most the first twelve."""
    items = [str(value) for value in values]
    rest = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
