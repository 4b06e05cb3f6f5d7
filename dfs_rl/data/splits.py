"""Deterministic, stratified assignment of images to splits, and removal of repeated images."""

import hashlib
import logging
import zlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dfs_rl.data.images import SPLIT_NAMES
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.utils.config import configuration
from dfs_rl.utils.seeding import numpy_generator

MIN_PER_CLASS = 2
_LOG = logging.getLogger(__name__)

Indices = NDArray[np.int64]
_Share = Annotated[float, Field(gt=0, lt=1)]


@configuration
class SplitFractions:
    """Shares, in (0, 1), of the source's train images per split and class; train gets the rest.

    ``test`` is not used if the source has a test split.
    """

    agent: _Share = 0.1
    val: _Share = 0.1
    test: _Share = 0.2

    def __post_init__(self) -> None:
        if self.agent + self.val + self.test >= 1:
            raise ConfigError(f"{self} adds up to 1 or more; nothing is left to train.")


def stratified_order(labels: Indices, *, stream: str) -> Indices:
    """Shuffle ``range(n)`` such that every prefix has the classes ``[n]`` in proportion.

    ``stream`` names the random stream; equal labels and names give equal orders.
    """
    n = len(labels)
    shuffle = numpy_generator("data", stream, n).permutation(n)
    by_class = shuffle[np.argsort(labels[shuffle], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(n) - np.repeat(starts, counts)  # position within the class
    progress = (rank + 0.5) / np.repeat(counts, counts)
    # The shuffle breaks ties, frequent in balanced data, so that no class always comes first.
    ties = np.argsort(shuffle)[by_class]
    return by_class[np.lexsort((ties, progress))].astype(np.int64)


def plan_splits(
    labels: Indices,
    test_labels: Indices | None,
    fractions: SplitFractions,
    *,
    class_names: Sequence[str],
    limit: int | None = None,
) -> dict[str, Indices]:
    """Assign the images of a source to disjoint splits, which cover it without ``limit``.

    The result has the row numbers of train, agent, val and test, int64. Every prefix of a split has
    the classes in proportion. Those of ``test`` refer to the source's own test split, if there is
    one.

    Args:
        labels: Class of every image, int64 ``[n]``.
        test_labels: Classes of the source's own test split, int64 ``[m]``, or None to carve one.
        fractions: Shares of the splits.
        class_names: Name of each class.
        limit: Largest number of images of either source, the classes in proportion. A limited split
            is a part of the unlimited one, so limited and unlimited runs never mix splits.

    Raises:
        ConfigError: If ``limit`` is not positive.
        DataError: If a class has too few images for all splits.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1 image.")
    order = stratified_order(labels, stream="train")
    shares = {"agent": fractions.agent, "val": fractions.val}
    if test_labels is None:
        shares["test"] = fractions.test

    parts: dict[str, list[Indices]] = {name: [] for name in ("train", *shares)}
    for label, class_name in enumerate(class_names):
        positions = np.flatnonzero(labels[order] == label)
        counts = {name: max(MIN_PER_CLASS, round(f * len(positions))) for name, f in shares.items()}
        if len(positions) - sum(counts.values()) < MIN_PER_CLASS:
            raise DataError(
                f"class {class_name!r} has {len(positions)} train images; at least {MIN_PER_CLASS} "
                f"are needed in each of the splits {list(parts)}, which share them."
            )
        ends = np.cumsum(list(counts.values()))
        for name, part in zip([*counts, "train"], np.split(positions, ends), strict=True):
            parts[name].append(part)
    rows = {name: order[np.sort(np.concatenate(chunks))] for name, chunks in parts.items()}
    if limit is not None:
        rows = _limited(rows, limit, least=MIN_PER_CLASS * len(class_names))
    for name, split in rows.items():
        _check_classes(labels[split], class_names, name, limit)
    if test_labels is not None:
        rows["test"] = stratified_order(test_labels, stream="test")[:limit]
        _check_classes(test_labels[rows["test"]], class_names, "test", limit)
    return rows


def _limited(rows: dict[str, Indices], limit: int, *, least: int) -> dict[str, Indices]:
    """Keep a proportional prefix of each split, at least ``least`` rows; train gets the rest."""
    total = sum(map(len, rows.values()))
    sizes = {name: max(least, len(part) * limit // total) for name, part in rows.items()}
    sizes["train"] = max(0, limit - sum(sizes.values()) + sizes["train"])
    return {name: part[: sizes[name]] for name, part in rows.items()}


def _check_classes(
    labels: Indices, class_names: Sequence[str], split: str, limit: int | None
) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        missing = class_names[int(counts.argmin())]
        cause = "" if limit is None else f" (limit {limit})"
        raise DataError(
            f"split {split!r} has no image of class {missing!r}{cause}; every split needs all of "
            f"the {len(class_names)} classes."
        )


def drop_repeats(
    name: str,
    class_names: Sequence[str],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    lengths: Sequence[int],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]:
    """Return pixels, labels and split lengths without images of an earlier split, in any class.

    The pixels ``[n, c, h, w]``, one split after another, are overwritten if images are dropped, and
    the number of dropped images is logged.

    Raises:
        DataError: If no image of a class remains in a split.
    """
    split = np.repeat(np.arange(len(lengths)), lengths)
    checksums = [zlib.crc32(image) for image in pixels]  # takes a third of the time of SHA-256
    _, value, counts = np.unique(checksums, return_inverse=True, return_counts=True)
    repeats = np.zeros(len(pixels), dtype=np.bool_)
    first: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[value] > 1).tolist():
        digest = hashlib.sha256(pixels[row]).digest()
        repeats[row] = first.setdefault(digest, split[row]) != split[row]
    if not repeats.any():
        return pixels, labels, list(lengths)
    fewer = np.bincount(split[repeats], minlength=len(lengths)).tolist()
    dropped = ", ".join(f"{n} of {part}" for n, part in zip(fewer, SPLIT_NAMES, strict=True) if n)
    cells = split * len(class_names) + labels
    if len(lost := np.setdiff1d(cells, cells[~repeats])):
        part, label = divmod(int(lost[0]), len(class_names))
        raise DataError(
            f"data set {name!r}: every image of class {class_names[label]!r} in split "
            f"{SPLIT_NAMES[part]!r} occurs in an earlier split too (of {', '.join(SPLIT_NAMES)}); "
            f"remove the repeated images ({dropped})."
        )
    _LOG.warning("Left out of %s: images that also occur in an earlier split (%s).", name, dropped)
    rows = np.flatnonzero(~repeats)
    for target, row in enumerate(rows.tolist()):  # in place, since two copies may exceed the memory
        pixels[target] = pixels[row]
    return pixels[: len(rows)], labels[rows], np.subtract(lengths, fewer).tolist()
