"""Tables of the ``datasets`` library: parquet files, hub data sets, and an unreachable hub."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.data.sources import find_columns, sources_of_splits
from dfs_rl.errors import DataError

TRAIN = [0, 1] * 10
TEST = [1, 0, 1]
NAMES = ["cat", "dog"]
STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
BINARY, INT, TEXT = (datasets.Value(kind) for kind in ("binary", "int64", "string"))


def test_rows_get_their_labels_and_splits(parquet_folder, numbered):
    before = sorted(parquet_folder.parent.rglob("*"))
    dataset = load_dataset(str(parquet_folder))
    assert (dataset.name, dataset.class_names, dataset.flip) == ("tiny", ("cat", "dog"), True)
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [32, 4, 4, 10]
    expected = {}
    for number in range(50):
        pixels = np.asarray(numbered(number)).transpose(2, 0, 1)
        label = (number % 2) if number < 20 or number >= 40 else 1 - number % 2
        expected[pixels.tobytes()] = (number, label)
    found = []
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        for image, label in zip(split.images, split.labels, strict=True):
            number, expected_label = expected[image.numpy().tobytes()]
            assert label == expected_label
            assert (number >= 40) == (name == "test")
            found.append(number)
    assert sorted(found) == list(range(50))
    assert load_dataset(str(parquet_folder)).fingerprint == dataset.fingerprint
    assert sorted(parquet_folder.parent.rglob("*")) == before  # nothing is written


def test_plain_columns_and_no_class_names(tmp_path, numbered, png):
    images = [png(numbered(i)) for i in range(30)]
    table = pa.table({"picture": images, "kind": pa.array([0, 1, 2] * 10, pa.uint8())})
    folder = tmp_path / "a[b] *?"  # no pattern
    folder.mkdir()
    parquet.write_table(table, folder / "train.parquet")
    dataset = load_dataset(str(folder))
    assert dataset.image_shape == (3, 6, 6)
    assert dataset.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        ({"photo": STRUCT, "sort": datasets.Value("int8")}, "photo", "sort"),
        ({"image": STRUCT, "mask": STRUCT, "label": INT}, "image", "label"),
        ({"img": BINARY, "id": INT, "labels": INT}, "img", "labels"),
        ({"img": STRUCT, "fine_label": INT, "coarse_label": INT}, "img", "fine_label"),
        (
            {
                "x": datasets.Image(),
                "image": BINARY,
                "breed": datasets.ClassLabel(names=NAMES),
                "label": INT,
            },
            "x",
            "breed",
        ),
    ],
)
def test_columns_are_found(columns, image, label):
    assert find_columns(columns, "here") == (image, label)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": STRUCT, "a": INT, "b": INT}, "label column .* any of a, b"),
        ({"a": STRUCT, "b": BINARY, "label": INT}, "image column .* any of a, b"),
        ({"img": STRUCT, "label": TEXT}, r"label \(string\); the label column .* is missing"),
        ({"text": TEXT, "label": INT}, "image column .* is missing"),
        ({"img": {"path": TEXT}, "label": INT}, "image column .* missing"),
    ],
)
def test_unclear_columns_are_listed(columns, message):
    with pytest.raises(DataError, match=rf"^here has the columns .*{message}"):
        find_columns(columns, "here")


CUT = object()
"""Marks an image that is cut off."""


@pytest.mark.parametrize(
    ("name", "changes", "images", "message"),
    [
        ("train-1", {}, {13: CUT}, "{} row 13 is not a readable image"),
        ("train-1", {}, {7: None}, "{} row 7 has no image bytes in column 'img'"),
        ("train-1", {"labels": [0, 1, 0, None] * 5}, {}, "{} row 3 has no label in column 'label'"),
        ("train-1", {"label_column": "target"}, {}, "{} has no column 'label' of the type"),
        ("train-1", {"class_names": ["dog", "cat"]}, {}, "{} has no column 'label' of the type"),
        ("test", {"class_names": ["cat", "cow"]}, {}, "{} has the classes cat, cow"),
        ("test", {"labels": [0, 1, 2], "class_names": None}, {}, "{} has the classes 0, 1, 2"),
        ("test", {"labels": [0] * 5}, {}, "split 'test' has no image of class 'dog'"),
        ("test", {"labels": [-1] * 5}, {}, "{} has label -1 in row 0, as in a source that"),
    ],
)
def test_damaged_tables_are_named(
    parquet_folder, write_parquet, numbered, png, refusal, name, changes, images, message
):
    path = parquet_folder / f"{name}.parquet"
    rows: list[bytes | None] = [png(numbered(i)) for i in range(20)]
    for row, image in images.items():
        rows[row] = rows[row][:60] if image is CUT else None
    options = {"labels": TRAIN, "class_names": NAMES, **changes}
    write_parquet(path, images=rows[: len(options["labels"])], **options)
    assert message.format(path) in refusal(parquet_folder)


@pytest.mark.parametrize("size", [0, 3, 0.5, 0.99])
def test_truncated_file_is_named(parquet_folder, size, refusal):
    path = parquet_folder / "train-1.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: size if isinstance(size, int) else int(size * len(data))])
    assert f"{path} cannot be read (" in refusal(parquet_folder)


def test_flipped_bytes_raise_only_data_errors(parquet_folder):
    path = parquet_folder / "train-0.parquet"
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(16):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 8).tolist():
            damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            load_dataset(str(parquet_folder))
        except DataError:
            refused += 1
    assert refused > 7


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([1, 2] * 10, None, "labels 1, 2 and no class names"),
        ([0, 2] * 10, None, "0 to n - 1"),
        ([0, -1] * 10, None, "train.parquet has label -1 in row 1"),
        ([0, 1, 2] * 10, ["a", "b"], "label 2 in row 2 but names only 2 classes"),
        ([0] * 10, None, "has the classes ['0']; at least 2"),
        ([0, 1] * 10, ["a", "b", "c"], "class 'c' has 0 train images"),
        ([], None, "contains no images"),
        (list(range(1, 31)), None, "11, 12, … (30 in all)"),
        ([0, 1] * 10, ["cat", "d\udcf6g"], "'d\\udcf6g'"),
    ],
)
def test_labels_are_numbered_from_zero(tmp_path, write_parquet, labels, names, words, refusal):
    write_parquet(tmp_path / "train.parquet", labels, class_names=names)
    assert words in refusal(tmp_path)


# Data sets of the hub.


@pytest.fixture
def pets(numbered):
    features = datasets.Features(
        {"id": INT, "photo": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    )

    def make(labels: list[int], first: int = 0):
        n = len(labels)
        photos = [numbered(first + i) for i in range(n)]
        columns = {"id": list(range(n)), "photo": photos, "kind": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict(train=make(TRAIN), test=make(TEST, first=20))


def test_splits_become_sources(pets, numbered, png):
    name, train, test = sources_of_splits("somebody/pets", pets)
    assert name == "somebody/pets"
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == TRAIN
    assert test.labels.tolist() == TEST
    images = list(test.read(np.array([False, True, True])))
    assert images == [
        (1, png(numbered(21)), "somebody/pets test row 1"),
        (2, png(numbered(22)), "somebody/pets test row 2"),
    ]

    columns = {"image": ["gone.png"], "label": [0]}  # images in files are given as paths
    features = datasets.Features({"image": datasets.Image(), "label": INT})
    stored = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    _, train, _ = sources_of_splits("somebody/files", stored)
    assert next(train.read(np.ones(1, dtype=bool)))[1] == Path("gone.png")


def test_splits_are_chosen_by_their_words(pets, caplog):
    def sizes(**splits):
        caplog.clear()
        _, train, test = sources_of_splits("somebody/pets", datasets.DatasetDict(splits))
        logged = [record.getMessage().split(" (")[0] for record in caplog.records]
        return len(train.labels), len(test.labels), logged

    train, test = pets["train"], pets["test"]
    assert sizes(Training=train, testing=test) == (20, 3, [])
    unused = ["Not used of somebody/pets: eval, train_small"]
    assert sizes(train=train, test=test, eval=train, train_small=test) == (20, 3, unused)
    del pets["train"]
    with pytest.raises(DataError, match=r"'somebody/pets' has the splits \['test'\]; 'train' is"):
        sources_of_splits("somebody/pets", pets)


LOAD = """
import sys
from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.errors import DataError
for name in sys.argv[1:]:
    try:
        dataset = load_dataset(name)
        print(dataset.name, dataset.class_names, [len(dataset.split(n)) for n in SPLIT_NAMES])
    except DataError as error:
        print(error)
"""
UNREACHABLE = "is no existing folder, the hub cannot be reached (no network, or HF_HUB_OFFLINE is"


def load_offline(cache: Path, *names: str, **variables: str) -> list[str]:
    """Load data sets in a process, and return the line that it prints for each."""
    places = {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **places, "HF_HUB_OFFLINE": "0", **variables},
    )
    assert "Retry" not in done.stderr
    return done.stdout.splitlines()


def test_missing_data_set_is_one_sentence_offline(tmp_path):
    (message,) = load_offline(tmp_path, "somebody/pets", HF_HUB_OFFLINE="1")
    assert message.startswith(f"data set 'somebody/pets' {UNREACHABLE}")


def test_cache_serves_without_network(tmp_path, write_parquet):
    """The library's cache is laid out as ``owner___name/config/version/hash/name-split.arrow``."""
    files = {
        "train": str(write_parquet(tmp_path / "train.parquet", TRAIN, class_names=NAMES)),
        "test": str(write_parquet(tmp_path / "test.parquet", TEST, class_names=NAMES, first=20)),
    }
    cache = tmp_path / "hf" / "datasets"
    builder = datasets.load_dataset_builder(
        "parquet", "default", data_files=files, cache_dir=str(cache)
    )
    builder.download_and_prepare()
    (written,) = {path.parent for path in cache.rglob("*.arrow")}
    target = cache / "somebody___pets" / "default" / "0.0.0" / "0123456789abcdef"
    target.parent.mkdir(parents=True)
    written.rename(target)
    for path in target.glob("parquet-*.arrow"):
        path.rename(path.with_name(path.name.replace("parquet-", "pets-")))
    names = ("somebody/pets", "somebody/else")
    found, missing = load_offline(tmp_path / "hf", *names, HF_ENDPOINT="http://127.0.0.1:9")
    assert found == "somebody/pets ('cat', 'dog') [12, 4, 4, 3]"
    assert missing.startswith(f"data set 'somebody/else' {UNREACHABLE}")
