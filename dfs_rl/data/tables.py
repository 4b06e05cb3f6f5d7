"""Sources from tables of encoded images: parquet files and Arrow batches.

Parquet files are read with pyarrow, batch by batch. The ``datasets`` library first copies every
file into an Arrow cache in the user's home and decodes through two more layers, so it is used for
hub ids only; their tables are read by this module too.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dfs_rl.data.decode import EncodedImage
from dfs_rl.data.layout import TABLE_SUFFIX, SplitLabel, Tree, pick_splits, read_split_label
from dfs_rl.data.source import Source, Sources
from dfs_rl.errors import DataError

_BATCH_ROWS = 1024
_BATCH_BYTES = 2**28
_DAMAGE = (pa.ArrowException, OSError, ValueError)
_PREFERRED_IMAGES = ("image", "img")
_PREFERRED_LABELS = ("label", "labels", "fine_label")
# Shard suffix of a split's files, as in train-00000-of-00002-0123456789abcdef.parquet.
_SHARD = re.compile(r"[-._ ]?\d+(?:[-._ ]of[-._ ](?P<count>\d+))?(?:-[0-9a-f]{16})?$")
_BYTES = "bytes"  # field of an image struct with the encoded image


class Columns(NamedTuple):
    """Columns of a table that are read.

    Attributes:
        image: Name of the image column.
        label: Name of the label column.
        class_names: Name of each class, or None if the table has none.
    """

    image: str
    label: str
    class_names: tuple[str, ...] | None


class PlacedBatch(NamedTuple):
    """Batch of rows with its origin.

    Attributes:
        rows: Rows of the batch.
        file: File of the rows, for messages.
        first: Row number of the first row in the file.
    """

    rows: pa.RecordBatch
    file: str
    first: int


Batches = Callable[[str], Iterator[PlacedBatch]]


def parquet_sources(folder: Path, tree: Tree) -> Sources:
    """Return the sources of the parquet files of the train and the test split.

    Splits are recognized by the names of files and sub-folders: ``train-00000-of-00002.parquet``,
    ``data/train.parquet`` or ``default/train/0000.parquet``.

    Args:
        folder: Folder of the data set.
        tree: Files of the folder, some of them parquet files.

    Raises:
        DataError: If there is no file of the train split, the files belong to several sets of
            splits, a file is missing or unreadable, or there are also class folders with images.
    """
    places = [
        (*place, name)
        for place, names in sorted(tree.items())
        for name in sorted(names)
        if name.lower().endswith(TABLE_SUFFIX)
    ]
    images = sum(map(len, tree.values())) - len(places)
    loose = sum(not name.lower().endswith(TABLE_SUFFIX) for name in tree[()])
    if images > loose:
        raise DataError(
            f"{folder} holds parquet files ({'/'.join(places[0])}) and folders with images; give a "
            "folder with one of the two."
        )
    labels: dict[str, SplitLabel] = {}
    parts: dict[str, list[Path]] = {}
    for place in places:
        part, label = _read_place(folder, place)
        labels[part] = label
        parts.setdefault(part, []).append(folder.joinpath(*place))
    train, test = pick_splits(str(folder), labels)
    return Sources(
        name=folder.resolve().name,
        train=_parquet_source(parts[train]),
        test=None if test is None else _parquet_source(parts[test]),
    )


def _read_place(folder: Path, place: Sequence[str]) -> tuple[str, SplitLabel]:
    """Return the part of a data set that a file belongs to, and the split label of the part."""
    *folders, name = place
    stem = _SHARD.sub("", name[: -len(TABLE_SUFFIX)])
    split: str | None = None
    rest: tuple[str, ...] = ()
    part = []
    for text in (*folders, stem):
        label = read_split_label(text)
        if split and label.split is None:
            continue  # any name is valid in a split's folder
        if split and label.split not in (None, split):
            raise DataError(
                f"{folder.joinpath(*place)} is named like both {split} and {label.split}; rename "
                "it or its folder."
            )
        split = split or label.split
        rest += label.rest
        part.append(text or name)
    return "/".join(part), SplitLabel(split, rest)


def table_source(origin: str, schema: pa.Schema, batches: Batches) -> Source:
    """Build a source from Arrow batches.

    Args:
        origin: Location of the table, for messages.
        schema: Columns of the table; ``huggingface`` metadata, if any, declares their roles.
        batches: Function that iterates over the batches of one column from the first row.

    Raises:
        DataError: If the image or label column cannot be determined, or a label is missing.
    """
    columns = find_columns(schema, origin)

    def read(wanted: NDArray[np.bool_]) -> Iterator[EncodedImage]:
        start = 0
        for batch in batches(columns.image):
            column = batch.rows.column(0)
            if pa.types.is_struct(column.type):
                column = column.flatten()[column.type.get_field_index(_BYTES)]
            for offset in np.flatnonzero(wanted[start : start + len(column)]).tolist():
                place = f"{batch.file} row {batch.first + offset}"
                data = column[offset].as_py()
                if data is None:
                    raise DataError(f"{place} has no image bytes in column {columns.image!r}.")
                yield EncodedImage(start + offset, data, place)
            start += len(column)

    return Source(
        origin=origin,
        labels=_read_labels(batches(columns.label), columns.label),
        class_names=columns.class_names,
        read=read,
    )


def find_columns(schema: pa.Schema, origin: str) -> Columns:
    """Find the image and the label column by their types.

    Images are encoded bytes: a struct with a binary field ``bytes``, or a binary column. Labels are
    whole numbers. Columns that the ``huggingface`` metadata declares as ``Image`` or ``ClassLabel``
    have priority; among several columns, usual names decide.

    Args:
        schema: Columns of the table.
        origin: Location of the table, for messages.

    Raises:
        DataError: If there is no such column, or several and none with a usual name.
    """
    features = _declared_features(schema)
    images = [field.name for field in schema if _is_image(field.type)]
    labels = [field.name for field in schema if pa.types.is_integer(field.type)]
    declared_images = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    declared_labels = [
        name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"
    ]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    image = _choose(
        declared_images or images,
        _PREFERRED_IMAGES,
        f"{origin} has the columns {columns}; the image column (encoded bytes)",
    )
    label = _choose(
        declared_labels or labels,
        _PREFERRED_LABELS,
        f"{origin} has the columns {columns}; the label column (whole numbers)",
    )
    return Columns(image, label, _class_names(features.get(label, {})))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_BYTES)
        return index >= 0 and _is_image(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _choose(candidates: Sequence[str], preferred: Sequence[str], subject: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    for name in preferred:
        if name in candidates:
            return name
    found = f"could be any of {', '.join(candidates)}" if candidates else "is missing"
    raise DataError(f"{subject} {found}; one is needed, or one called {' or '.join(preferred)}.")


def _declared_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features in the metadata of the ``datasets`` library, empty without them."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text)["info"]["features"]
        return {name: spec for name, spec in features.items() if isinstance(spec, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # other metadata: column types and names decide


def _class_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _read_labels(batches: Iterator[PlacedBatch], name: str) -> NDArray[np.int64]:
    chunks = [np.zeros(0, dtype=np.int64)]
    for batch in batches:
        column = batch.rows.column(0)
        if column.null_count:
            row = batch.first + int(
                np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]
            )
            raise DataError(f"{batch.file} row {row} has no label in column {name!r}.")
        chunks.append(column.to_numpy(zero_copy_only=False).astype(np.int64))
    return np.concatenate(chunks)


def _parquet_source(files: list[Path]) -> Source:
    _check_complete(files)
    schema = _open(files[0]).schema_arrow

    def batches(column: str) -> Iterator[PlacedBatch]:
        for path in files:
            file = _open(path)
            index = file.schema_arrow.get_field_index(column)  # -1 where missing or not unique
            if index < 0 or file.schema_arrow.field(index).type != schema.field(column).type:
                raise DataError(
                    f"{path} has no column {column!r} of the type that {files[0]} has; all files "
                    "of a split need the same columns."
                )
            first = 0
            try:
                size = _batch_rows(file.metadata, column)
                for rows in file.iter_batches(batch_size=size, columns=[column]):
                    yield PlacedBatch(rows, str(path), first)
                    first += len(rows)
            except _DAMAGE as error:
                raise _unreadable(path, error) from error

    return table_source(str(files[0]), schema, batches)


def _batch_rows(metadata: parquet.FileMetaData, column: str) -> int:
    """Return a number of rows that fits in memory.

    With dictionary encoding, a single row may expand to the size of a whole column chunk.
    """
    largest = max(
        (
            chunk.total_uncompressed_size
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for chunk in map(group.column, range(metadata.num_columns))
            if chunk.path_in_schema in (column, f"{column}.{_BYTES}")
        ),
        default=0,
    )
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, largest)))


def _check_complete(files: list[Path]) -> None:
    """Check that a split has all of its shards, and those of one write only."""
    matches = [_SHARD.search(path.name[: -len(TABLE_SUFFIX)]) for path in files]
    counts = {match["count"] for match in matches if match} - {None}
    if counts and (len(counts) > 1 or len(files) != int(*counts)):
        raise DataError(
            f"{files[0]} is one of {' or of '.join(sorted(counts))} files by its name, but there "
            f"are {len(files)}; give a folder with all the files of one writing."
        )


def _open(path: Path) -> parquet.ParquetFile:
    if not path.is_file():  # reading a pipe or a device may never end
        raise DataError(f"{path} is no regular file; parquet files must be.")
    try:
        file = parquet.ParquetFile(path)
        str(file.schema_arrow)  # decodes the names, which fails for some damaged files
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    return file


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [""])[0][:160]
    return DataError(f"{path} is not a readable parquet file ({reason}); it may be incomplete.")
