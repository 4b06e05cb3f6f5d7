import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.data.layout import read_tree
from dfs_rl.data.tables import find_columns, parquet_sources
from dfs_rl.errors import DataError

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def schema(features: dict[str, dict] | None = None, **columns: pa.DataType) -> pa.Schema:
    info = {"huggingface": json.dumps({"info": {"features": features or {}}})}
    return pa.schema(list(columns.items()), metadata=info)


def test_rows_land_in_the_splits_with_their_labels(parquet_folder, numbered):
    dataset = load_dataset(str(parquet_folder))
    assert dataset.name == "tiny"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.flip
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


def test_loading_twice_gives_the_same(parquet_folder):
    first, again = (load_dataset(str(parquet_folder)) for _ in range(2))
    assert first.fingerprint == again.fingerprint


def test_limit_leaves_the_rest_unread(parquet_folder):
    dataset = load_dataset(str(parquet_folder), limit=12)
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [4, 4, 4, 10]


def test_without_a_test_file_the_test_split_is_carved(parquet_folder):
    (parquet_folder / "test.parquet").unlink()
    dataset = load_dataset(str(parquet_folder))
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [24, 4, 4, 8]


def test_files_may_lie_in_one_folder_inside(parquet_folder, write_parquet):
    outer = parquet_folder.parent
    dataset = load_dataset(str(outer))
    assert dataset.name == outer.name
    assert dataset.class_names == ("cat", "dog")
    write_parquet(outer / "other" / "train.parquet", [0, 1] * 10)
    message = refusal(outer)
    assert "holds other/train, tiny/test, tiny/train, more than one set of splits" in message
    assert "give a folder with one" in message


def test_nothing_is_written_beside_the_data(parquet_folder):
    before = sorted(parquet_folder.rglob("*"))
    load_dataset(str(parquet_folder))
    assert sorted(parquet_folder.rglob("*")) == before


def test_without_names_the_classes_are_numbers(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2] * 10)
    assert load_dataset(str(tmp_path)).class_names == ("0", "1", "2")


def test_plain_binary_columns_hold_images_too(tmp_path, numbered, png):
    images = [png(numbered(i)) for i in range(20)]
    table = pa.table({"picture": images, "kind": pa.array([0, 1] * 10, pa.uint8())})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert load_dataset(str(tmp_path)).image_shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("given", "image", "label"),
    [
        (schema(img=IMAGE, label=pa.int64()), "img", "label"),
        (schema(photo=IMAGE, sort=pa.int8()), "photo", "sort"),
        (schema(image=IMAGE, mask=IMAGE, label=pa.int64()), "image", "label"),
        (schema(img=IMAGE, id=pa.int64(), label=pa.int64()), "img", "label"),
        (schema(img=IMAGE, id=pa.int64(), labels=pa.int64()), "img", "labels"),
        (schema(img=IMAGE, fine_label=pa.int64(), coarse_label=pa.int64()), "img", "fine_label"),
        (
            schema(
                {"breed": {"_type": "ClassLabel", "names": ["a", "b"]}, "x": {"_type": "Image"}},
                x=IMAGE,
                image=pa.binary(),
                breed=pa.int64(),
                label=pa.int64(),
            ),
            "x",
            "breed",
        ),
    ],
)
def test_columns_are_told_by_type_declaration_and_name(given, image, label):
    columns = find_columns(given, "somewhere")
    assert (columns.image, columns.label) == (image, label)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (schema(img=IMAGE, a=pa.int64(), b=pa.int32()), "label column .* any of a, b"),
        (schema(a=IMAGE, b=pa.binary(), label=pa.int64()), "image column .* any of a, b"),
        (schema(img=IMAGE, label=pa.string()), r"label \(string\); the label column .* is missing"),
        (schema(text=pa.string(), label=pa.int64()), "image column .* is missing"),
        (schema(img=pa.struct({"path": pa.string()}), label=pa.int64()), "image column .* missing"),
    ],
)
def test_columns_that_cannot_be_told_are_listed(given, message):
    with pytest.raises(DataError, match=rf"^somewhere has the columns .*{message}"):
        find_columns(given, "somewhere")


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b"null", b'{"info": 3}', b'{"info": {"features": [1]}}', b"\xff"]
)
def test_foreign_metadata_is_no_obstacle(metadata):
    given = schema(img=IMAGE, label=pa.int64()).with_metadata({b"huggingface": metadata})
    assert find_columns(given, "somewhere").class_names is None


def refusal(folder) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_damaged_image_is_named_by_file_and_row(parquet_folder, write_parquet, numbered, png):
    images = [png(numbered(i)) for i in range(20)]
    images[13] = images[13][:60]
    write_parquet(parquet_folder / "train-1.parquet", [0, 1] * 10, images=images)
    message = refusal(parquet_folder)
    assert "train-1.parquet row 13 is not a readable image" in message


def test_a_missing_image_or_label_is_named(parquet_folder, write_parquet, numbered, png):
    images = [png(numbered(i)) for i in range(20)]
    images[7] = None
    path = parquet_folder / "train-1.parquet"
    write_parquet(path, [0, 1] * 10, images=images)
    assert "train-1.parquet row 7 has no image bytes in column 'img'" in refusal(parquet_folder)
    write_parquet(path, [0, 1, 0, None] * 5)
    assert "train-1.parquet row 3 has no label in column 'label'" in refusal(parquet_folder)


@pytest.mark.parametrize("size", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(parquet_folder, size):
    path = parquet_folder / "train-0.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: size if isinstance(size, int) else int(size * len(data))])
    assert "train-0.parquet is not a readable parquet file" in refusal(parquet_folder)


def test_flipped_bytes_give_a_sentence_or_other_pixels(parquet_folder):
    path = parquet_folder / "train-0.parquet"
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 8).tolist():
            damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            load_dataset(str(parquet_folder))
        except DataError:
            refused += 1
    assert refused > 30


def test_files_of_one_split_need_the_same_columns(parquet_folder, write_parquet):
    write_parquet(parquet_folder / "train-1.parquet", [0, 1] * 10, label_column="target")
    assert "train-1.parquet has no column 'label' of the type" in refusal(parquet_folder)


def test_test_classes_must_be_those_of_train(parquet_folder, write_parquet):
    path = parquet_folder / "test.parquet"
    write_parquet(path, [0, 1] * 5, class_names=["cat", "cow"])
    assert "test.parquet has the classes cat, cow" in refusal(parquet_folder)
    write_parquet(path, [0, 1, 2] * 5)
    assert "test.parquet has label 2" in refusal(parquet_folder)
    write_parquet(path, [0] * 5)
    assert "split 'test' has no image of class 'dog'" in refusal(parquet_folder)


def test_labels_must_be_numbered_from_zero(tmp_path, write_parquet):
    path = tmp_path / "train.parquet"
    write_parquet(path, [1, 2] * 10)
    assert "labels 1, 2 and no class names" in refusal(tmp_path)
    write_parquet(path, [0, 2] * 10)
    assert "0 to n - 1" in refusal(tmp_path)
    write_parquet(path, [0, -1] * 10)
    assert "train.parquet has label -1 in row 1" in refusal(tmp_path)
    write_parquet(path, [0, 1, 2] * 10, class_names=["a", "b"])
    assert "label 2 in row 2 but names only 2 classes" in refusal(tmp_path)
    write_parquet(path, [0] * 10)
    assert "only the class ['0']" in refusal(tmp_path)
    write_parquet(path, [0, 1] * 10, class_names=["a", "b", "c"])
    assert "class 'c' has 0 train images" in refusal(tmp_path)
    write_parquet(path, [])
    assert "holds no images" in refusal(tmp_path)


def test_many_labels_are_not_all_listed(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(range(1, 31)))
    assert "11, 12, … (30 in all)" in refusal(tmp_path)


def test_withheld_test_labels_are_refused(parquet_folder, write_parquet):
    write_parquet(parquet_folder / "test.parquet", [-1] * 5, class_names=["cat", "dog"])
    assert "withhold their labels" in refusal(parquet_folder)


def test_parquet_without_train_is_refused(parquet_folder):
    for path in parquet_folder.glob("train*"):
        path.unlink()
    assert "holds test but no train split; name it train" in refusal(parquet_folder)
    (parquet_folder / "test.parquet").rename(parquet_folder / "0000.parquet")
    assert "holds 0000.parquet but no train split" in refusal(parquet_folder)


@pytest.mark.parametrize("name", ["extra-00000-of-00001", "trainval", "val", "unsupervised"])
def test_files_of_other_splits_are_not_used_and_logged(parquet_folder, write_parquet, caplog, name):
    before = load_dataset(str(parquet_folder)).fingerprint
    assert not caplog.records
    write_parquet(parquet_folder / f"{name}.parquet", [0, 1] * 10)
    assert load_dataset(str(parquet_folder)).fingerprint == before
    (record,) = caplog.records
    assert f"Not used of {parquet_folder}: {name.split('-')[0]} " in record.getMessage()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train_small.parquet", "train, train_small, more than one set of splits"),
        ("small/train.parquet", "small/train, test, train, more than one set of splits"),
        ("Train.parquet", "Train, test, train, more than one set of splits"),
        ("eval.parquet", "eval, test, train, more than one set of splits"),
        ("test/train.parquet", "test/train.parquet is named like both test and train"),
        ("train-00000-of-00002.parquet", "train-0.parquet is one of 00002 files by its name"),
    ],
)
def test_files_of_unclear_meaning_are_refused_by_name(parquet_folder, write_parquet, name, words):
    write_parquet(parquet_folder / name, [0, 1] * 10)
    message = refusal(parquet_folder)
    assert words in message


def test_a_missing_part_of_a_split_is_refused(tmp_path, write_parquet):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1] * 10)
    assert "is one of 00002 files by its name, but there are 1" in refusal(tmp_path)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [0, 1] * 10, first=20)
    assert sum(len(load_dataset(str(tmp_path)).split(name)) for name in SPLIT_NAMES) == 40


def test_parquet_files_beside_class_folders_are_refused(parquet_folder, numbered):
    numbered(0).save(parquet_folder / "logo.png")
    load_dataset(str(parquet_folder))
    (parquet_folder / "cat").mkdir()
    numbered(0).save(parquet_folder / "cat" / "0.png")
    assert "holds parquet files (test.parquet) and folders with images" in refusal(parquet_folder)


def test_a_pipe_or_a_device_is_no_parquet_file(tmp_path):
    path = tmp_path / "train.parquet"
    os.mkfifo(path)
    assert f"{path} is no regular file" in refusal(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert f"{path} is no regular file" in refusal(tmp_path)


def test_a_value_that_every_row_repeats_is_not_held_a_thousand_times(tmp_path, numbered, png):
    """A kilobyte on disk stands for 600 images of 8 MB."""
    data = png(numbered(0)) + bytes(2**23)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(600, np.int32)), pa.array([data]))
    table = pa.table({"image": column, "label": np.arange(600) % 2})
    parquet.write_table(
        table,
        tmp_path / "train.parquet",
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=2**30,
    )
    source = parquet_sources(tmp_path, read_tree(tmp_path)).train
    before = pa.total_allocated_bytes()
    first = next(source.read(np.ones(600, dtype=bool)))
    assert first.data == data
    assert pa.total_allocated_bytes() - before < 2**29


def test_class_names_that_are_not_utf_8_are_refused(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10, class_names=["cat", "d\udcf6g"])
    assert "'d\\udcf6g'" in refusal(tmp_path)
