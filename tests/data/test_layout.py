"""Splits and classes that the names of files and folders determine."""

import os

import numpy as np
import pytest

from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.data.layout import SPLIT_WORDS, class_files, read_split_label, read_tree
from dfs_rl.errors import DataError

NAMES = ["cat", "dog"]


def sizes(dataset) -> list[int]:
    return [len(dataset.split(name)) for name in SPLIT_NAMES]


def numbers(split, numbered, last: int) -> list[int]:
    known = {np.asarray(numbered(i)).transpose(2, 0, 1).tobytes(): i for i in range(last)}
    return [known[image.numpy().tobytes()] for image in split.images]


def test_split_words_are_those_of_the_datasets_library():
    from datasets.data_files import SPLIT_KEYWORDS

    names = {"train": "train", "validation": "val", "test": "test"}
    theirs = {word: names[str(split)] for split, words in SPLIT_KEYWORDS.items() for word in words}
    assert theirs == SPLIT_WORDS


@pytest.mark.parametrize(
    ("name", "split", "rest"),
    [
        ("TESTING", "test", ()),
        ("train_small", "train", ("small",)),
        ("trainA", "train", ("a",)),
        ("ValidImages", "val", ("images",)),
        ("train2017", "train", ("2017",)),
        ("trainval", None, ("trainval",)),
        ("train-test", None, ("train", "test")),
        ("latest", None, ("latest",)),
        ("développement test", "test", ("développement",)),
        ("", None, ()),
    ],
)
def test_split_words_are_found_in_names(name, split, rest):
    assert read_split_label(name) == (split, rest)


# Image folders.


def test_class_folders(image_folder, numbered):
    dataset = load_dataset(str(image_folder({"dog": 20, "cat": 30})))
    assert (dataset.name, dataset.class_names, dataset.flip) == ("pictures", ("cat", "dog"), True)
    assert sizes(dataset) == [30, 5, 5, 10]
    found = []
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        rows = numbers(split, numbered, 50)
        assert split.labels.tolist() == [int(row < 20) for row in rows]
        found += rows
    assert sorted(found) == list(range(50))


def test_files_do_not_depend_on_the_order_of_folders(tmp_path):
    places = {("dog",): ["z.png"], ("cat", "b"): ["1.png"], ("cat",): [], ("cat", "a"): ["2.png"]}
    found = class_files(tmp_path, {(): [], **places}, ())
    assert list(found) == ["cat", "dog"]
    assert found["cat"] == [tmp_path / "cat/a/2.png", tmp_path / "cat/b/1.png"]


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("trainImages", "testImages"), ("train_set", "eval-set")]
)
def test_split_folders_of_any_case(image_folder, numbered, caplog, train, test):
    image_folder({"cat": 10, "dog": 10}, under=train)
    image_folder({"cat": 3, "dog": 3}, under=test, first=20)
    folder = image_folder({"cat": 3, "dog": 3}, under="extra", first=26)
    dataset = load_dataset(str(folder))
    assert dataset.class_names == ("cat", "dog")
    assert sizes(dataset) == [12, 4, 4, 6]
    assert sorted(numbers(dataset.test, numbered, 26)) == list(range(20, 26))
    (record,) = caplog.records
    assert f"Not used of {folder}: extra " in record.getMessage()


@pytest.mark.parametrize(
    ("under", "names"), [("", ("bus stop", "train station")), ("train", ("car", "test"))]
)
def test_class_names_may_contain_split_words(image_folder, under, names):
    folder = image_folder(dict.fromkeys(names, 10), under=under)
    assert load_dataset(str(folder)).class_names == names


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["val/cat", "val/dog", "test/cat", "test/dog"], "test, val but no train split"),
        (["train/cat", "train/dog", "Train/cat", "Train/dog"], "Train, train, more than one"),
        (["train/cat", "train/dog", "train_small/cat"], "train_small, more than one set"),
        (["trainA/x", "trainB/x", "testA/x", "testB/x"], "testA, testB, trainA, trainB, more than"),
        (["train", "test"], "test, train, named like a split, but images are in test, train"),
        (["good", "bad", "test"], "test, named like a split, but images are in bad, good, test"),
        (["car", "val2"], "val2, named like a split"),
        (["train/cat", "train/dog", "Meta"], "train, named like a split, but images are in Meta"),
        (["pets/train/cat", "pets/test/cat"], "pets/test, pets/train, named like splits"),
        (["cat/train", "cat/test", "dog/train"], "cat/test, cat/train, dog/train, named like"),
        (["train/cat/test", "train/dog"], "cat/test, named like splits"),
        (["train/train", "train/test"], "test, train, named like splits"),
        (["a/cat", "a/dog", "b/cat", "b/dog", "c/cow"], "a, b in "),
        (["trainset/cat", "trainset/dog", "testset/cat", "testset/dog"], "the same folders"),
        (["cat"], "has the classes ['cat']; at least 2"),
    ],
)
def test_folders_of_unclear_meaning_are_refused(image_folder, folders, words, refusal):
    for first, name in enumerate(folders):
        folder = image_folder({name: 8}, first=8 * first)
    assert words in refusal(folder)


@pytest.mark.parametrize("name", ["dog", ""])
def test_names_that_are_not_utf8_are_refused(image_folder, monkeypatch, name, refusal):
    folder = image_folder({"cat": 10, "dog": 10})
    monkeypatch.setattr("PIL.Image.open", None)  # nothing is read
    renamed = (folder / name).with_name(os.fsdecode(b"d\xf6g"))
    (folder / name).rename(renamed)
    assert "d\\udcf6g" in refusal(folder if name else renamed)


def test_other_hidden_and_nested_files(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / "README.txt").write_text("hello")
    (folder / "cat" / "._000.png").write_text("hello")
    (folder / ".thumbnails").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "dog" / "more").mkdir()
    next((folder / "dog").glob("*.png")).rename(folder / "dog" / "more" / "again.PNG")
    dataset = load_dataset(str(folder))
    assert dataset.class_names == ("cat", "dog")
    assert sum(sizes(dataset)) == 20


def test_folders_without_images_are_refused(image_folder, numbered, tmp_path, refusal):
    assert f"{tmp_path} contains neither train*.parquet nor class folders" in refusal(tmp_path)
    numbered(0).save(tmp_path / "a.png")
    assert "nor class folders" in refusal(tmp_path)
    folder = image_folder({"cat": 10, "dog": 0})
    (folder / "dog" / "list.txt").write_text("hello")
    assert f"{folder / 'dog'} contains no image, but list.txt; names" in refusal(folder)
    (folder / "dog" / "list.txt").unlink()
    assert f"{folder / 'dog'} contains no image; names" in refusal(folder)


def test_damaged_files_are_named(image_folder, tmp_path, refusal):
    folder = image_folder({"cat": 10, "dog": 10})
    path = folder / "dog" / "zz.png"
    path.write_text("hello")
    assert f"{path} is not a readable image" in refusal(folder)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere.png")
    assert f"{path} is not a readable image" in refusal(folder)
    path.unlink()
    os.mkfifo(path)  # reading a pipe may never end
    assert f"{path} is no regular file" in refusal(folder)
    path = tmp_path / "tables" / "train.parquet"
    path.parent.mkdir()
    os.mkfifo(path)
    assert f"{path} is no regular file" in refusal(path.parent)


def test_images_of_two_sizes_need_an_image_size(image_folder, numbered, refusal):
    folder = image_folder({"cat": 10, "dog": 10})
    numbered(0, side=9).save(folder / "dog" / "zz.png")
    message = refusal(folder)
    assert "zz.png is 9 x 9 pixels" in message
    assert "--image-size" in message
    dataset = load_dataset(str(folder), image_size=6)
    assert (dataset.image_shape, dataset.image_size) == ((3, 6, 6), 6)
    pixels = {image.numpy().tobytes() for s in SPLIT_NAMES for image in dataset.split(s).images}
    assert len(pixels) == 21
    for i in range(20):  # images of that size do not change
        assert np.asarray(numbered(i)).transpose(2, 0, 1).tobytes() in pixels


def test_classes_of_test_must_be_those_of_train(image_folder, refusal):
    image_folder({"cat": 10, "dog": 10}, under="train")
    folder = image_folder({"cat": 3, "cow": 3}, under="test", first=20)
    assert f"{folder / 'test'} has the classes cat, cow but" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("locked", ["", "cat"])
def test_unreadable_folder_is_named(image_folder, locked, refusal):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / locked).chmod(0)
    try:
        assert "cannot be read (Permission denied)" in refusal(folder)
    finally:
        (folder / locked).chmod(0o755)


def test_links_may_lead_elsewhere_but_not_up(image_folder, tmp_path):
    folder = image_folder({"cat": 2, "dog": 2})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(folder / "cat")
    assert read_tree(tmp_path / "linked")["cat",] == ["000.png", "001.png"]
    (folder / "dog" / "again").symlink_to(folder, target_is_directory=True)
    with pytest.raises(DataError, match=r"dog/again is a link to one of its parent folders"):
        read_tree(folder)


# Parquet files.


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/train.parquet", "test/test.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        (
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
            "data/test-00000-of-00001-0123456789abcdef.parquet",
        ),
        ("pets_train.parquet", "pets_test.parquet"),
        ("training/part-0.parquet", "evaluation/part-0.parquet"),
    ],
)
def test_parquet_layouts_are_those_of_the_library(tmp_path, write_parquet, train, test):
    import datasets

    folder = tmp_path / "pets"
    write_parquet(folder / train, [0, 1] * 10, class_names=NAMES)
    write_parquet(folder / test, [0, 1] * 5, class_names=NAMES, first=20)
    ours = load_dataset(str(folder))
    theirs = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "c"))
    images = {np.asarray(image).transpose(2, 0, 1).tobytes() for image in theirs["test"]["img"]}
    assert {image.numpy().tobytes() for image in ours.test.images} == images
    assert sizes(ours) == [12, 4, 4, 10]
    assert len(theirs["train"]) == 20


@pytest.mark.parametrize("name", ["extra-00000-of-00001", "trainval", "val", "unsupervised"])
def test_files_of_other_splits_are_not_used(parquet_folder, write_parquet, caplog, name):
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
        ("../other/train.parquet", "other/train, tiny/test, tiny/train, more than one set of"),
    ],
)
def test_files_of_unclear_meaning_are_refused(parquet_folder, write_parquet, name, words, refusal):
    write_parquet(parquet_folder / name, [0, 1] * 10)
    assert words in refusal(parquet_folder.parent if ".." in name else parquet_folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test.parquet", "contains test but no train split; name it train"),
        ("0000.parquet", "contains 0000.parquet but no train split"),
        ("train-00000-of-00002.parquet", "is one of 00002 files by its name, but there are 1"),
    ],
)
def test_incomplete_parquet_folders_are_refused(tmp_path, write_parquet, name, words, refusal):
    write_parquet(tmp_path / name, [0, 1] * 10)
    assert words in refusal(tmp_path)


def test_parquet_and_class_folders_are_refused(parquet_folder, numbered, refusal):
    numbered(0).save(parquet_folder / "logo.png")
    load_dataset(str(parquet_folder))
    (parquet_folder / "cat").mkdir()
    numbered(0).save(parquet_folder / "cat" / "0.png")
    assert "contains parquet files and also images" in refusal(parquet_folder)
