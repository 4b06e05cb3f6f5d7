"""Which image goes into which split: deterministic, stratified, from the labels alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_rl.errors import ConfigError, DataError
from dfs_rl.seeding import numpy_generator

MIN_PER_CLASS = 2

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SplitFractions:
    """How the images are shared out, class by class; ``train`` takes what is left.

    Attributes:
        agent: Share for gate learning, of the source's own train images, in (0, 1).
        val: Share for selection, likewise.
        test: Share for the test split, in (0, 1); not used where the source has a test split.

    Raises:
        ConfigError: If a share is outside (0, 1), or they leave nothing for ``train``.
    """

    agent: float = 0.1
    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        shares = {"agent": self.agent, "val": self.val, "test": self.test}
        for name, share in shares.items():
            if not 0 < share < 1:
                raise ConfigError(f"split fraction {name} is {share}; it must lie between 0 and 1.")
        if sum(shares.values()) >= 1:
            raise ConfigError(
                f"split fractions {shares} add up to 1 or more; nothing is left to train."
            )


class SplitPlan(NamedTuple):
    """Row numbers of each split, int64; every prefix of a split holds the classes in proportion.

    ``test`` counts rows of the source's own test split where there is one, else rows of the same
    source.
    """

    train: Indices
    agent: Indices
    val: Indices
    test: Indices


def stratified_order(labels: Indices, *, stream: str) -> Indices:
    """Shuffle so that every prefix holds the classes in proportion.

    Args:
        labels: int64 ``[n]``.
        stream: Names the shuffle; the same labels and name always give the same order.

    Returns:
        A permutation of ``range(n)``.
    """
    n = len(labels)
    shuffle = numpy_generator("data", stream, n).permutation(n)
    by_class = shuffle[np.argsort(labels[shuffle], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(n) - np.repeat(starts, counts)  # position within the class
    progress = (rank + 0.5) / np.repeat(counts, counts)
    # Equal progress, as in balanced data, is ordered by the shuffle: no class always comes first.
    ties = np.argsort(shuffle)[by_class]
    return by_class[np.lexsort((ties, progress))].astype(np.int64)


def plan_splits(
    labels: Indices,
    test_labels: Indices | None,
    fractions: SplitFractions,
    *,
    class_names: Sequence[str],
    limit: int | None = None,
) -> SplitPlan:
    """Share out the images of a source.

    Args:
        labels: int64 ``[n]``, class of every image.
        test_labels: int64 ``[m]``, those of the source's own test split, or None to carve one.
        fractions: The shares.
        class_names: Name of each class, for the messages.
        limit: At most this many images of either source, the classes in proportion.

    Returns:
        Disjoint row numbers; without ``limit`` they cover every image.

    Raises:
        ConfigError: If ``limit`` is not positive.
        DataError: If a class has too few images for every split to get two of it.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1 image.")
    order = stratified_order(labels, stream="train")[:limit]
    shares = {"agent": fractions.agent, "val": fractions.val}
    if test_labels is None:
        shares["test"] = fractions.test

    parts: dict[str, list[Indices]] = {name: [] for name in ("train", *shares)}
    for label, class_name in enumerate(class_names):
        positions = np.flatnonzero(labels[order] == label)
        counts = {name: max(MIN_PER_CLASS, round(f * len(positions))) for name, f in shares.items()}
        kept = len(positions) - sum(counts.values())
        if kept < MIN_PER_CLASS:
            among = "" if limit is None else f" among the first {len(order)} (limit {limit})"
            raise DataError(
                f"class {class_name!r} has {len(positions)} train images{among}; at least "
                f"{MIN_PER_CLASS} are needed in each of the splits {list(parts)}, which share them."
            )
        ends = np.cumsum(list(counts.values()))
        for name, part in zip([*counts, "train"], np.split(positions, ends), strict=True):
            parts[name].append(part)

    rows = {name: order[np.sort(np.concatenate(chunks))] for name, chunks in parts.items()}
    if test_labels is not None:
        rows["test"] = _own_test(test_labels, class_names, limit)
    return SplitPlan(**rows)


def _own_test(labels: Indices, class_names: Sequence[str], limit: int | None) -> Indices:
    order = stratified_order(labels, stream="test")[:limit]
    present = set(labels[order].tolist())
    for label, name in enumerate(class_names):
        if label not in present:
            among = "" if limit is None else f" within the limit of {limit}"
            raise DataError(
                f"the test images hold none of class {name!r}{among}; every class of the train "
                "images must be there."
            )
    return order
