"""Sources of data sets: image folders, parquet files and hub ids, before they are split.

Image folders are not read with the ``datasets`` library: its ``imagefolder`` builder takes 0.6 ms
per file to list a folder, returns the files in no fixed order, and merges class folders of one
name.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_rl.data.decode import ImageData, brief
from dfs_rl.data.images import check_text
from dfs_rl.data.layout import (
    TABLE_SUFFIX,
    Tree,
    class_files,
    image_splits,
    read_split_label,
    read_tree,
    report_unused,
    table_splits,
)
from dfs_rl.errors import DataError

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_BATCH_ROWS = 256  # rows of encoded images in memory at a time
_PROBE_SECONDS = 10.0

Rows = Iterator[tuple[int, ImageData, str]]
"""Numbers of rows of a source, their images, and places for messages."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Train or test images of a data set."""

    origin: str  # location, for messages
    labels: NDArray[np.int64]  # class of every row, [n], not negative
    class_names: tuple[str, ...] | None  # None if the source has only numbers
    read: Callable[[NDArray[np.bool_]], Rows]  # yields the rows of a mask [n], in order

    def __post_init__(self) -> None:
        check_text(*(self.class_names or ()))
        if not len(self.labels):
            raise DataError(f"{self.origin} contains no images.")
        row = int(self.labels.argmin())
        if self.labels[row] < 0:
            raise DataError(
                f"{self.origin} has label {self.labels[row]} in row {row}, as in a source that "
                "withholds its labels; labels must be 0 or more."
            )
        row = int(self.labels.argmax())
        if self.class_names is not None and self.labels[row] >= len(self.class_names):
            raise DataError(
                f"{self.origin} has label {self.labels[row]} in row {row} but names only "
                f"{len(self.class_names)} classes; allowed are 0 to {len(self.class_names) - 1}."
            )


Sources = tuple[str, Source, Source | None]
"""Name of a data set, its train source and, if it has a test split, its test source."""


def folder_sources(folder: Path) -> Sources:
    """Return the sources of a folder of parquet files or of class folders with images."""
    name, tree = folder.resolve().name, read_tree(folder)
    if any(file.lower().endswith(TABLE_SUFFIX) for files in tree.values() for file in files):
        train_files, test_files = table_splits(folder, tree)
        test_source = None if test_files is None else _parquet_source(test_files)
        return name, _parquet_source(train_files), test_source
    train, test = image_splits(folder, tree)
    test_source = None if test is None else _image_source(folder, tree, test)
    return name, _image_source(folder, tree, train), test_source


def _image_source(folder: Path, tree: Tree, split: tuple[str, ...]) -> Source:
    classes = class_files(folder, tree, split)
    files = [file for found in classes.values() for file in found]

    def read(wanted: NDArray[np.bool_]) -> Rows:
        for row in np.flatnonzero(wanted).tolist():
            yield row, files[row], str(files[row])

    return Source(
        origin=str(folder.joinpath(*split)),
        labels=np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()]),
        class_names=tuple(classes),
        read=read,
    )


def _parquet_source(files: list[Path]) -> Source:
    """Return the source of the parquet files of one split, one after another."""
    import datasets  # a slow import that digits and image folders do not need

    def load(path: Path, columns: list[str] | None = None) -> Any:  # noqa: ANN401 - untyped library
        # The library locks a file in its cache even if it writes nothing there.
        with tempfile.TemporaryDirectory() as cache, _reporting_damage(str(path)):
            return datasets.IterableDataset.from_parquet(
                escape(str(path)), columns=columns, batch_size=_BATCH_ROWS, cache_dir=cache
            )

    features = load(files[0]).features

    def read_column(column: str) -> Iterator[tuple[str, Any]]:
        for path in files:
            if load(path).features.get(column) != features[column]:
                raise DataError(
                    f"{path} has no column {column!r} of the type that {files[0]} has; all files "
                    "of a split need the same columns."
                )
            yield str(path), load(path, [column])

    return _table_source(str(files[0]), features, read_column)


def hub_sources(spec: str) -> Sources:
    """Load ``owner/name`` or ``owner/name:config`` from the hub, or from its cache if offline."""
    import datasets  # a slow import that digits and image folders do not need
    import huggingface_hub

    name, _, config = spec.partition(":")
    online = not huggingface_hub.constants.HF_HUB_OFFLINE and _is_reachable(name)
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not online:  # restrict both libraries to their cache, as the variable does at import
            huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        splits = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if online:
            fault = f"cannot be read from the hub ({brief(error)})"
        else:
            fault = (
                "is no existing folder, the hub cannot be reached (no network, or HF_HUB_OFFLINE "
                "is set), and it is not in the local cache"
            )
        raise DataError(f"data set {spec!r} {fault}.") from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    return sources_of_splits(spec, splits)


def _is_reachable(name: str) -> bool:
    """Return whether the hub answers a single request; the library retries for half a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except HfHubHTTPError as error:
        # Loading reports unknown, private and gated data sets; server errors count as unreachable.
        return bool(error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR)
    except Exception:  # noqa: BLE001 - the hub's HTTP library has changed its error classes twice
        return False
    return True


def sources_of_splits(spec: str, splits: Any) -> Sources:  # noqa: ANN401 - untyped library
    """Return the train and test sources of a ``datasets.DatasetDict``."""
    # Users cannot rename splits on the hub, so an exact name wins over other split words.
    labels = {split: read_split_label(split) for split in sorted(splits)}
    named = {label.split: split for split, label in labels.items() if not label.rest}
    train, test = (name if name in splits else named.get(name) for name in ("train", "test"))
    if train is None:
        raise DataError(f"data set {spec!r} has the splits {sorted(splits)}; 'train' is needed.")
    report_unused(spec, set(splits) - {train, test})

    def source(split: str) -> Source:
        origin, data = f"{spec} {split}", splits[split]
        return _table_source(
            origin, data.features, lambda name: [(origin, data.select_columns(name))]
        )

    return spec, source(train), None if test is None else source(test)


def _table_source(
    origin: str,
    features: Any,  # noqa: ANN401 - untyped library
    read_column: Callable[[str], Iterable[tuple[str, Any]]],
) -> Source:
    """Build a source from the tables that ``read_column`` returns: location and one column."""
    image, label = find_columns(features, origin)

    def batches(column: str) -> Iterator[tuple[str, int, Any]]:
        for place, table in read_column(column):
            first = 0
            with _reporting_damage(place):
                for batch in table.with_format("arrow").iter(batch_size=_BATCH_ROWS):
                    yield place, first, batch.column(0)
                    first += len(batch)

    labels = [np.zeros(0, dtype=np.int64)]
    for place, first, values in batches(label):
        if values.null_count:
            row = first + values.to_pylist().index(None)
            raise DataError(f"{place} row {row} has no label in column {label!r}.")
        labels.append(values.to_numpy().astype(np.int64))

    def read(wanted: NDArray[np.bool_]) -> Rows:
        start = 0
        for place, first, values in batches(image):
            for offset in np.flatnonzero(wanted[start : start + len(values)]).tolist():
                where = f"{place} row {first + offset}"
                data = _encoded(values[offset].as_py())
                if data is None:
                    raise DataError(f"{where} has no image bytes in column {image!r}.")
                yield start + offset, data, where
            start += len(values)

    names = getattr(features[label], "names", None)
    return Source(
        origin=origin,
        labels=np.concatenate(labels),
        class_names=tuple(map(str, names)) if names else None,
        read=read,
    )


def _encoded(value: Any) -> bytes | Path | None:  # noqa: ANN401 - a cell of any table
    """Return the encoded image of a cell, or its file, since some tables store paths."""
    if not isinstance(value, dict):
        return value or None
    return value["bytes"] or (Path(value["path"]) if value.get("path") else None)


def find_columns(features: Any, origin: str) -> tuple[str, str]:  # noqa: ANN401 - untyped library
    """Return the names of the image and the label column.

    Images are declared as ``Image``, or are encoded bytes: a binary column, or a struct with a
    binary field ``bytes``. Labels are declared as ``ClassLabel``, or are whole numbers. Declared
    columns have priority; among several columns, usual names decide, or it is an error.
    """
    kinds = {
        name: getattr(feature.get("bytes") if isinstance(feature, dict) else feature, "dtype", None)
        for name, feature in features.items()
    }
    declared = {name: type(feature).__name__ for name, feature in features.items()}
    shown = ", ".join(f"{name} ({kinds[name] or declared[name]})" for name in kinds)

    def choose(what: str, kind: str, prefixes: tuple[str, ...], usual: tuple[str, ...]) -> str:
        matching = [name for name in kinds if (kinds[name] or "").startswith(prefixes)]
        candidates = [name for name in declared if declared[name] == kind] or matching
        best = candidates if len(candidates) == 1 else [n for n in usual if n in candidates]
        if best:
            return best[0]
        found = f"could be any of {', '.join(candidates)}" if candidates else "is missing"
        raise DataError(
            f"{origin} has the columns {shown}; the {what} {found}; one is needed, or one called "
            f"{' or '.join(usual)}."
        )

    return (
        choose("image column (encoded bytes)", "Image", ("binary", "large_binary"), _IMAGE_NAMES),
        choose("label column (whole numbers)", "ClassLabel", ("int", "uint"), _LABEL_NAMES),
    )


@contextmanager
def _reporting_damage(place: str) -> Iterator[None]:
    """Turn any error of a library in the block into a DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{place} cannot be read ({brief(error)}); it may be incomplete."
        ) from error
