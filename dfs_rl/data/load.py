"""Loading of data sets by name, folder or hub id into four splits in memory."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfs_rl.data.corruptions import corrupted
from dfs_rl.data.decode import ImageArray
from dfs_rl.data.images import MIN_SIDE, Dataset, ImageSet, check_text
from dfs_rl.data.layout import few
from dfs_rl.data.sources import Rows, Source, Sources, folder_sources, hub_sources
from dfs_rl.data.splits import SplitFractions, drop_repeats, plan_splits
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.utils.constants import DIGITS, MNIST5K, Corruptions
from dfs_rl.utils.dataset_names import DATASETS, dataset_folder, dataset_name

LoaderT = TypeVar("LoaderT", bound=Callable[[], Dataset])

_DIGITS_SHARES = SplitFractions(agent=0.25, val=0.12, test=0.23)
_MNIST5K_SHARES = SplitFractions(agent=0.2, val=0.1, test=0.3)
_MNIST5K_FILE = Path(__file__).parent / "mnist5k" / "mnist5k.npz"


def register_dataset(name: str) -> Callable[[LoaderT], LoaderT]:
    """Register a function that returns a ``Dataset``, as a name that ``--dataset`` takes.

    The name has lower-case letters, digits and underscores, and no other data set has it.
    """

    def register(loader: LoaderT) -> LoaderT:
        if name == DIGITS:
            raise ConfigError(f"data set {name!r} is already registered; choose another name.")
        DATASETS.add(name, loader)
        return loader

    return register


def load_mnist5k() -> Dataset:
    """Return 2,000 train, 1,000 agent, 500 val and 1,500 test images of 28 x 28 pixels."""
    with np.load(_MNIST5K_FILE, allow_pickle=False) as stored:
        images, labels = stored["images"][:, None], stored["labels"].astype(np.int64)
    names = tuple("0123456789")
    plan = plan_splits(labels, None, _MNIST5K_SHARES, class_names=names)
    rows, lengths = np.concatenate(list(plan.values())), list(map(len, plan.values()))
    return _dataset(MNIST5K, names, images[rows], labels[rows], lengths, flip=False)


def _dataset(
    name: str,
    class_names: tuple[str, ...],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    lengths: list[int],
    *,
    flip: bool,
    image_size: int | None = None,
) -> Dataset:
    """Return a data set whose splits are consecutive views of two arrays."""
    images = torch.split(torch.from_numpy(pixels), lengths)
    sets = map(ImageSet, images, torch.split(torch.from_numpy(labels), lengths))
    train, agent, val, test = sets
    return Dataset(
        name=name,
        class_names=class_names,
        train=train,
        agent=agent,
        val=val,
        test=test,
        flip=flip,
        image_size=image_size,
    )


def load_dataset(
    spec: str | Path,
    *,
    splits: SplitFractions | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    corruptions: Corruptions = "none",
) -> Dataset:
    """Load a data set into memory, ``n * c * h * w`` bytes, and split it deterministically.

    The source's own test split stays the test split; agent and val are carved from its train images
    class by class. Without a test split, test is carved too. A validation split of the source is
    not used. Within a split the images are shuffled so that every prefix has the classes in
    proportion.

    An image whose pixels also occur in an earlier split, in the order train, agent, val, test, is
    left out. The number of such images, and the unused parts of a folder, are logged as warnings,
    which Python prints by default.

    Args:
        spec: ``digits`` (scikit-learn's 1,797 images of 8 x 8 pixels); ``mnist5k`` (5,000 digits
            of MNIST, 28 x 28 pixels); a name of ``register_dataset``; a folder of parquet files or
            of images; or a hub id ``owner/name`` or ``owner/name:config``, read with the
            ``datasets`` library. Splits are recognized by that library's words in any case (train,
            training; test, testing, eval, evaluation; val, valid, validation, dev):
            ``train.parquet``, ``data/train-00000-of-00002.parquet``,
            ``default/train/0000.parquet``. Columns of parquet files are recognized by their types.
            Image files are ``class/name.jpg``, or ``train/class/name.jpg`` with or without
            ``test/class/name.jpg``. Ambiguous names of splits or classes are errors.
        splits: Shares of the splits; None uses those of ``SplitFractions``, and 25 % agent, 12 %
            val and 23 % test for the digits.
        limit: Largest number of images of the source's train split, and of its test split, for
            quick trials. Classes stay in proportion. Every split is then a part of its full
            version, except that repeats of images that were not read are not left out.
        image_size: Height and width of the images in pixels. The shorter side is resized,
            antialiased bilinear, and the centre is cropped; None keeps the original size, and
            requires images of equal size.
        flip: Whether training mirrors half of the images; None mirrors all data sets except the
            digits of either kind. Use False for letters and digits.
        corruptions: Stream that agent, val and test become, see ``dfs_rl.data.corruptions``.

    Raises:
        ConfigError: If ``spec`` is no text or path, ``limit`` is not positive, ``image_size`` is
            not a whole number of at least 4, or ``corruptions`` is unknown.
        DataError: If the data set cannot be found, read or split.
    """
    spec = dataset_name(spec)
    if image_size is not None and (type(image_size) is not int or image_size < MIN_SIDE):
        raise ConfigError(
            f"image_size is {image_size!r}; allowed are whole numbers of pixels from {MIN_SIDE} on."
        )
    if spec in DATASETS:
        if splits is not None or limit is not None:
            raise ConfigError(
                f"splits is {splits} and limit is {limit}, but the registered data set {spec!r} "
                "has its own splits; leave them out."
            )
        registered = _load_registered(spec, image_size=image_size, flip=flip)
        return corrupted(registered, corruptions)
    name, train, test = _find_sources(spec)
    names = _agree_on_classes(train, test)
    if splits is None:
        splits = _DIGITS_SHARES if spec == DIGITS else SplitFractions()
    test_labels = None if test is None else test.labels
    plan = plan_splits(train.labels, test_labels, splits, class_names=names, limit=limit)
    lengths = list(map(len, plan.values()))
    array = ImageArray(sum(lengths), image_size=image_size)
    own_test = [] if test is None else [(test, plan.pop("test"))]
    labels: list[NDArray[np.int64]] = []
    for source, rows in [(train, np.concatenate(list(plan.values()))), *own_test]:
        _fill(array, sum(map(len, labels)), source, rows)
        labels.append(source.labels[rows])
    parts = drop_repeats(name, names, array.pixels, np.concatenate(labels), lengths)
    flip = flips_by_default(spec) if flip is None else flip
    dataset = _dataset(name, names, *parts, flip=flip, image_size=image_size)
    return corrupted(dataset, corruptions)


def flips_by_default(spec: str) -> bool:
    """Return the default of ``flip``: that of a registered data set, False only for the digits."""
    return DATASETS[spec]().flip if spec in DATASETS else spec != DIGITS


def _load_registered(name: str, *, image_size: int | None, flip: bool | None) -> Dataset:
    dataset = DATASETS[name]()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"the function of data set {name!r} returns a {type(dataset).__name__}; needed is a "
            "Dataset."
        )
    if image_size not in (None, dataset.image_size):
        raise ConfigError(
            f"image_size is {image_size}, but the registered data set {name!r} has images of "
            f"{dataset.train.image_shape[1]} x {dataset.train.image_shape[2]} pixels; leave it out."
        )
    return dataset if flip is None else replace(dataset, flip=flip)


def _digits_sources() -> Sources:
    from sklearn.datasets import load_digits  # a slow import

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # published as 0 to 16

    def read(wanted: NDArray[np.bool_]) -> Rows:
        for row in np.flatnonzero(wanted).tolist():
            yield row, Image.fromarray(grey[row]), f"{DIGITS} row {row}"

    train = Source(
        origin=DIGITS,
        labels=digits.target.astype(np.int64),
        class_names=tuple(map(str, digits.target_names)),
        read=read,
    )
    return DIGITS, train, None


def _find_sources(spec: str) -> Sources:
    if spec == DIGITS:
        return _digits_sources()
    check_text(spec)
    try:
        folder = dataset_folder(spec)
        return hub_sources(spec) if folder is None else folder_sources(folder)
    except OSError as error:
        raise DataError(f"{error.filename or spec} cannot be read ({error.strerror}).") from error


def _agree_on_classes(train: Source, test: Source | None) -> tuple[str, ...]:
    """Return the class names after a check that train and test agree on them."""
    names = train.class_names
    if names is None:
        values = np.unique(train.labels)
        if not np.array_equal(values, np.arange(len(values))):
            raise DataError(
                f"{train.origin} has the labels {few(values)} and no class names; labels must be "
                "0 to n - 1 with none left out."
            )
        names = tuple(map(str, values))
    if test is not None:
        theirs = test.class_names or range(int(test.labels.max()) + 1)
        if len(theirs) > len(names) or test.class_names not in (None, names):
            raise DataError(
                f"{test.origin} has the classes {few(theirs)} but {train.origin} {few(names)}; "
                "they must be the same."
            )
    return names


def _fill(pixels: ImageArray, start: int, source: Source, rows: NDArray[np.int64]) -> None:
    """Decode ``rows`` of a source into ``pixels`` from index ``start`` on."""
    target = np.full(len(source.labels), -1)
    target[rows] = np.arange(start, start + len(rows))
    with warnings.catch_warnings():
        # Pillow warns about odd metadata; undecodable pixels are errors anyway.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for row, data, place in source.read(target >= 0):
            pixels.put(target[row], data, place)
