"""Small data sets on disk, of images whose pixels say which image they are."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dfs_rl.data import load_dataset
from dfs_rl.errors import DataError

SIDE = 6


def _numbered_image(number: int, side: int = SIDE, mode: str = "RGB") -> Image.Image:
    """An image whose every pixel depends on its number, lossless as PNG."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(
    path: Path,
    labels: Sequence[int | None],
    *,
    images: Sequence[bytes | None] | None = None,
    first: int = 0,
    class_names: Sequence[str] | None = None,
    image_column: str = "img",
    label_column: str = "label",
) -> Path:
    """Write rows as the ``datasets`` library would; image i is ``numbered(first + i)``."""
    if images is None:
        images = [_png(_numbered_image(first + i)) for i in range(len(labels))]
    structs = [None if data is None else {"bytes": data, "path": None} for data in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {image_column: pa.array(structs, kind), label_column: pa.array(labels, pa.int64())}
    )
    if class_names is not None:
        features = {
            image_column: {"_type": "Image"},
            label_column: {"_type": "ClassLabel", "names": list(class_names)},
        }
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


@pytest.fixture
def numbered() -> Callable[..., Image.Image]:
    return _numbered_image


@pytest.fixture
def png() -> Callable[[Image.Image], bytes]:
    return _png


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    return _write_parquet


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """Two classes, 20 train images each in two files, 5 test images each."""
    folder = tmp_path / "tiny"
    names = ["cat", "dog"]
    _write_parquet(folder / "train-0.parquet", [0, 1] * 10, class_names=names)
    _write_parquet(folder / "train-1.parquet", [1, 0] * 10, first=20, class_names=names)
    _write_parquet(folder / "test.parquet", [0, 1] * 5, first=40, class_names=names)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write ``classes/name.png``; image i of all is ``numbered(i)``."""

    def write(counts: dict[str, int], *, under: str = "", first: int = 0) -> Path:
        folder = tmp_path / "pictures" / under
        number = first
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for _ in range(count):
                _numbered_image(number).save(folder / name / f"{number:03}.png")
                number += 1
        return tmp_path / "pictures"

    return write


@pytest.fixture
def refusal() -> Callable[[object], str]:
    """Load a data set that cannot be loaded and return the sentence of the error."""

    def load(spec: object) -> str:
        with pytest.raises(DataError) as caught:
            load_dataset(str(spec))
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith(".")
        return message

    return load
