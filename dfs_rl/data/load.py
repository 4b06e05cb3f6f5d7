"""The one entrance: what a user calls a data set, to tensors in four splits."""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfs_rl.data.decode import ImageArray, allocate, fit_picture
from dfs_rl.data.images import MIN_CLASSES, MIN_SIDE, Dataset, ImageSet, check_text
from dfs_rl.data.layout import TABLE_SUFFIX, few, read_tree
from dfs_rl.data.repeats import drop_repeats
from dfs_rl.data.source import Source, Sources
from dfs_rl.data.splits import SplitFractions, plan_splits
from dfs_rl.errors import ConfigError, DataError
from dfs_rl.utils.constants import DIGITS

DIGITS_FRACTIONS = SplitFractions(agent=0.25, val=0.12, test=0.23)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_FORMS = (
    f"{DIGITS!r}, a folder with train*.parquet, a folder of class folders with images, or a hub id "
    "such as 'uoft-cs/cifar10'"
)


def load_dataset(
    spec: str,
    *,
    splits: SplitFractions | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
) -> Dataset:
    """Load a data set into memory and split it, the same way every time.

    The source's own test split stays the test split; agent and val are carved from its train images
    class by class. Where there is no test split, one is carved too. A validation split of the
    source is not used. Within a split the images are shuffled so that every prefix holds the
    classes in proportion.

    An image that an earlier split holds too, pixel by pixel, is left out: of agent, val and test
    where train has it, of val and test where agent has it, of test where val has it. How many, and
    which parts of a folder are not used, is logged as a warning, which Python prints by default.

    Args:
        spec: ``digits`` (scikit-learn's 1,797 images of 8 x 8 pixels); a folder of parquet files
            or of images; or a hub id ``owner/name`` or ``owner/name:config``, read with the
            ``datasets`` library. Names tell the splits, with the words of that library in any case
            (train, training; test, testing, eval, evaluation; val, valid, validation, dev):
            ``train.parquet``, ``data/train-00000-of-00002.parquet``,
            ``default/train/0000.parquet``. Columns of parquet files are found by their types.
            Images lie in ``class/name.jpg``, or in ``train/class/name.jpg`` and perhaps
            ``test/class/name.jpg``. Where names leave open what is a split, or a class, the data
            set is refused.
        splits: Shares of the splits; None takes 10 % agent, 10 % val and, where the source has no
            test split, 20 % test; for the digits 25 %, 12 % and 23 %.
        limit: For quick trials: use at most this many images of the source's train and of its test
            split each, the classes in proportion; every split then is a part of its full self, but
            for images that the rest of an earlier split repeats, which are not read.
        image_size: Resize every image's shorter side to this many pixels, antialiased bilinear,
            and crop the centre to a square; None leaves them as they are, and refuses images of
            several sizes.
        flip: Whether training mirrors half of the images; None does so but for the digits. Letters
            and digits want False.

    Returns:
        The data set, ``n * c * h * w`` bytes of uint8 pixels.

    Raises:
        ConfigError: If ``limit`` is not positive, or ``image_size`` below 4.
        DataError: If the data set cannot be found, read or split.
    """
    if image_size is not None and (type(image_size) is not int or image_size < MIN_SIDE):
        raise ConfigError(
            f"image_size is {image_size!r}; allowed are whole numbers of pixels from {MIN_SIDE} on."
        )
    flip = flips_by_default(spec) if flip is None else flip
    if spec == DIGITS:
        return _load_digits(splits or DIGITS_FRACTIONS, limit, image_size=image_size, flip=flip)
    check_text(spec)
    sources = _find_sources(spec)
    check_text(sources.name)
    names = _agree_on_classes(sources)
    plan = plan_splits(
        sources.train.labels,
        None if sources.test is None else sources.test.labels,
        splits or SplitFractions(),
        class_names=names,
        limit=limit,
    )
    carved = [plan.train, plan.agent, plan.val]
    if sources.test is None:
        carved.append(plan.test)
    pixels = ImageArray(sum(map(len, plan)), image_size=image_size)
    labels = [_fill(pixels, 0, sources.train, np.concatenate(carved))]
    if sources.test is not None:
        labels.append(_fill(pixels, len(labels[0]), sources.test, plan.test))
    return _assemble(
        sources.name,
        names,
        pixels.pixels,
        np.concatenate(labels),
        [len(rows) for rows in plan],
        flip=flip,
        image_size=image_size,
    )


def flips_by_default(spec: str) -> bool:
    """Return whether training mirrors a data set's images where nobody says so."""
    return spec != DIGITS


def _load_digits(
    fractions: SplitFractions, limit: int | None, *, image_size: int | None, flip: bool
) -> Dataset:
    from sklearn.datasets import load_digits  # imported here: it takes a second

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    names = tuple(map(str, digits.target_names))
    plan = plan_splits(labels, None, fractions, class_names=names, limit=limit)
    rows = np.concatenate(plan)
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # published as 0 to 16
    pixels = grey[rows, None]
    if image_size is not None:
        pixels = allocate((len(rows), 1, image_size, image_size))  # refuses what has no room
        for target, row in enumerate(rows):
            pixels[target, 0] = np.asarray(fit_picture(Image.fromarray(grey[row]), image_size))
    lengths = [len(part) for part in plan]
    return _assemble(DIGITS, names, pixels, labels[rows], lengths, flip=flip, image_size=image_size)


def _find_sources(spec: str) -> Sources:
    try:
        folder = Path(spec).expanduser()
        if spec and folder.is_dir():  # Path("") would be the current folder
            from dfs_rl.data.folders import folder_sources
            from dfs_rl.data.tables import parquet_sources

            tree = read_tree(folder)
            names = (name for names in tree.values() for name in names)
            is_table = any(name.lower().endswith(TABLE_SUFFIX) for name in names)
            return (parquet_sources if is_table else folder_sources)(folder, tree)
        exists = spec and folder.exists()
    except OSError as error:
        raise DataError(f"{error.filename or spec} cannot be read ({error.strerror}).") from error
    except RuntimeError as error:  # ~name of no user
        raise DataError(
            f"data set {spec!r} has no such home folder; allowed are {_FORMS}."
        ) from error
    if exists:
        raise DataError(f"data set {spec!r} is a file; allowed are {_FORMS}.")
    if _HUB_ID.fullmatch(spec):
        from dfs_rl.data.hub import hub_sources

        return hub_sources(spec)
    raise DataError(f"data set {spec!r} does not exist; allowed are {_FORMS}.")


def _agree_on_classes(sources: Sources) -> tuple[str, ...]:
    """Return the class names, which train and test must share."""
    _, train, test = sources
    names = train.class_names
    if names is None:
        values = np.unique(train.labels)
        if not np.array_equal(values, np.arange(len(values))):
            raise DataError(
                f"{train.origin} has the labels {few(values)} and no class names; labels must be "
                "0 to n - 1 with none left out."
            )
        names = tuple(map(str, values))
    if len(names) < MIN_CLASSES:
        raise DataError(
            f"{train.origin} has only the class {list(names)}; {MIN_CLASSES} are needed."
        )
    if test is not None:
        if test.class_names is not None and test.class_names != names:
            raise DataError(
                f"{test.origin} has the classes {few(test.class_names)} but {train.origin} "
                f"{few(names)}; they must be the same."
            )
        if test.labels.max() >= len(names):
            raise DataError(
                f"{test.origin} has label {test.labels.max()} but {train.origin} only {len(names)} "
                "classes; they must be the same."
            )
    return names


def _fill(
    pixels: ImageArray, start: int, source: Source, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Decode ``rows`` of a source to ``start`` and following, and return their labels."""
    target = np.full(len(source.labels), -1)
    target[rows] = np.arange(start, start + len(rows))
    with warnings.catch_warnings():
        # Pillow warns of odd metadata; what matters, undecodable pixels, is an error anyway.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for image in source.read(target >= 0):
            pixels.put(target[image.row], image)
    return source.labels[rows]


def _assemble(
    name: str,
    class_names: tuple[str, ...],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    lengths: list[int],
    *,
    flip: bool,
    image_size: int | None,
) -> Dataset:
    """Make the splits views of one array that holds them one after another."""
    pixels, labels, lengths = drop_repeats(name, class_names, pixels, labels, lengths)
    images = torch.split(torch.from_numpy(pixels), lengths)
    classes = torch.split(torch.from_numpy(labels), lengths)
    train, agent, val, test = map(ImageSet, images, classes)
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
