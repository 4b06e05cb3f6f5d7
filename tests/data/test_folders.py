import os

import numpy as np
import pytest
from PIL import Image

from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.errors import DataError


def refusal(folder) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def numbers(split, numbered, first: int, last: int) -> list[int]:
    known = {np.asarray(numbered(i)).transpose(2, 0, 1).tobytes(): i for i in range(first, last)}
    return [known[image.numpy().tobytes()] for image in split.images]


def test_class_folders(image_folder, numbered):
    dataset = load_dataset(str(image_folder({"dog": 20, "cat": 30})))
    assert dataset.name == "pictures"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.flip
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [30, 5, 5, 10]
    found = []
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        rows = numbers(split, numbered, 0, 50)
        assert split.labels.tolist() == [1 if row < 20 else 0 for row in rows]
        found += rows
    assert sorted(found) == list(range(50))


def test_train_and_test_folders(image_folder, numbered):
    image_folder({"cat": 10, "dog": 10}, under="train")
    folder = image_folder({"cat": 3, "dog": 3}, under="test", first=20)
    dataset = load_dataset(str(folder))
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [12, 4, 4, 6]
    assert sorted(numbers(dataset.test, numbered, 20, 26)) == list(range(20, 26))


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("train", "Test"), ("trainImages", "testImages")]
)
def test_split_folders_are_told_in_any_case(image_folder, numbered, train, test):
    image_folder({"cat": 10, "dog": 10}, under=train)
    folder = image_folder({"cat": 3, "dog": 3}, under=test, first=20)
    dataset = load_dataset(str(folder))
    assert dataset.class_names == ("cat", "dog")
    assert sorted(numbers(dataset.test, numbered, 20, 26)) == list(range(20, 26))


def test_other_splits_are_not_used_and_logged(image_folder, numbered, caplog):
    for first, split in enumerate(("train", "val", "extra")):
        folder = image_folder({"cat": 10, "dog": 10}, under=split, first=20 * first)
    dataset = load_dataset(str(folder))
    for name in SPLIT_NAMES:
        assert max(numbers(dataset.split(name), numbered, 0, 20)) < 20
    assert [record.getMessage().split("(")[0] for record in caplog.records] == [
        f"Not used of {folder}: extra, val "
    ]


def test_a_class_among_others_may_hold_the_word_of_a_split(image_folder):
    folder = image_folder({"bus stop": 10, "train station": 10})
    assert load_dataset(str(folder)).class_names == ("bus stop", "train station")


@pytest.mark.parametrize("name", ["train", "Test", "val2"])
def test_a_class_that_could_be_a_split_is_refused_with_a_way_out(image_folder, name):
    folder = image_folder({"car": 10, name: 10})
    message = refusal(folder)
    assert f"holds {name}, named like a split" in message
    assert "move them into one folder called train" in message
    (folder / "train_").mkdir()
    for path in list(folder.iterdir()):
        if path.name != "train_":
            path.rename(folder / "train_" / path.name)
    (folder / "train_").rename(folder / "train")
    assert load_dataset(str(folder)).class_names == tuple(sorted(("car", name)))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["val/cat", "val/dog", "test/cat", "test/dog"], "holds test, val but no train split"),
        (["train/cat", "train/dog", "Train/cat", "Train/dog"], "holds Train, train, more than one"),
        (["train/cat", "train/dog", "train_small/cat"], "train_small, more than one set"),
        (["trainA/x", "trainB/x", "testA/x", "testB/x"], "testA, testB, trainA, trainB, more than"),
        (["train", "test"], "holds test, train, named like a split, but images lie in test, train"),
        (
            ["good", "bad", "test"],
            "holds test, named like a split, but images lie in bad, good, test",
        ),
        (
            ["train/cat", "train/dog", "Meta"],
            "holds train, named like a split, but images lie in Meta",
        ),
        (["pets/train/cat", "pets/test/cat"], "pets would be a class, but holds test, train"),
        (["cat/train", "cat/test", "dog/train"], "cat would be a class, but holds test, train"),
        (["train/cat/test", "train/dog"], "cat would be a class, but holds test"),
        (
            ["train/train", "train/test"],
            "holds test, train, named like splits, where class folders",
        ),
        (["a/cat", "a/dog", "b/cat", "b/dog", "c/cow"], "a, b in "),
        (
            ["trainset/cat", "trainset/dog", "testset/cat", "testset/dog"],
            "hold the same folders (cat, dog)",
        ),
    ],
)
def test_folders_of_unclear_meaning_are_refused_by_name(image_folder, folders, words):
    for first, name in enumerate(folders):
        folder = image_folder({name: 8}, first=8 * first)
    assert words in refusal(folder)


@pytest.mark.parametrize("under", ["", "train"])
def test_a_class_whose_name_is_not_utf_8_is_refused_before_anything_is_read(
    image_folder, monkeypatch, under
):
    folder = image_folder({"cat": 10, "dog": 10}, under=under)
    (folder / under / "dog").rename(folder / under / os.fsdecode(b"d\xf6g"))
    monkeypatch.setattr("PIL.Image.open", None)
    if under:
        image_folder({"cat": 3, "dog": 3}, under="test", first=20)
    message = refusal(folder)
    assert "'d\\udcf6g'" in message
    message.encode()


def test_a_data_set_whose_name_is_not_utf_8_is_refused(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    renamed = folder.parent / os.fsdecode(b"d\xf6gs")
    folder.rename(renamed)
    assert "d\\udcf6gs" in refusal(renamed)


@pytest.mark.parametrize("name", ["pipe.png", "train/cat/pipe.png"])
def test_a_pipe_among_the_images_is_named(image_folder, name):
    folder = image_folder({"cat": 10, "dog": 10}, under="train")
    os.mkfifo(folder / name)
    if "/" in name:
        assert "pipe.png is no regular file" in refusal(folder)
    else:
        assert load_dataset(str(folder)).class_names == ("cat", "dog")


def test_other_and_hidden_files_and_nested_folders(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / "README.txt").write_text("hello")
    (folder / "cat" / "notes.txt").write_text("hello")
    (folder / "cat" / "._000.png").write_text("hello")
    (folder / ".thumbnails").mkdir()
    (folder / "dog" / "more").mkdir()
    next((folder / "dog").glob("*.png")).rename(folder / "dog" / "more" / "again.PNG")
    dataset = load_dataset(str(folder))
    assert dataset.class_names == ("cat", "dog")
    assert sum(len(dataset.split(name)) for name in SPLIT_NAMES) == 20


def test_an_empty_folder_says_what_is_allowed(tmp_path):
    message = refusal(tmp_path)
    assert f"{tmp_path} holds neither train*.parquet nor class folders" in message
    assert "class/name.jpg" in message


def test_images_without_class_folders_are_refused(tmp_path, numbered):
    numbered(0).save(tmp_path / "a.png")
    assert "nor class folders" in refusal(tmp_path)


def test_a_class_folder_without_images_is_named(image_folder):
    folder = image_folder({"cat": 10, "dog": 0})
    (folder / "dog" / "list.txt").write_text("hello")
    message = refusal(folder)
    assert f"{folder / 'dog'} holds no image" in message
    assert ".png" in message


def test_a_single_class_is_refused(image_folder):
    assert "only the class ['cat']" in refusal(image_folder({"cat": 20}))


def test_a_small_class_is_named(image_folder):
    assert "class 'dog' has 7 train images" in refusal(image_folder({"cat": 20, "dog": 7}))


def test_text_called_jpg_is_named(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / "cat" / "zz.jpg").write_text("hello")
    assert "zz.jpg is not a readable image" in refusal(folder)


def test_images_of_two_sizes_are_named(image_folder, numbered):
    folder = image_folder({"cat": 10, "dog": 10})
    numbered(0, side=8).save(folder / "dog" / "zz.png")
    message = refusal(folder)
    assert "zz.png is 8 x 8 pixels" in message
    assert "000.png is 6 x 6" in message
    assert "--image-size" in message


@pytest.mark.parametrize("flip", [None, True, False])
def test_images_of_two_sizes_are_resized_where_that_is_asked_for(image_folder, numbered, flip):
    folder = image_folder({"cat": 10, "dog": 10})
    numbered(0, side=9).save(folder / "dog" / "zz.png")
    dataset = load_dataset(str(folder), image_size=6, flip=flip)
    assert dataset.image_shape == (3, 6, 6)
    assert dataset.image_size == 6
    assert dataset.flip is (flip is not False)
    pixels = [image.numpy().tobytes() for s in SPLIT_NAMES for image in dataset.split(s).images]
    assert len(pixels) == 21
    for i in range(20):  # those of that size are as they were
        assert np.asarray(numbered(i)).transpose(2, 0, 1).tobytes() in pixels
    resized = numbered(0, side=9).resize((6, 6), Image.Resampling.BILINEAR)
    assert np.asarray(resized).transpose(2, 0, 1).tobytes() in pixels


def test_a_broken_link_is_named(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / "dog" / "zz.png").symlink_to(folder / "nowhere.png")
    assert "zz.png is not a readable image" in refusal(folder)


def test_test_folders_must_have_the_same_classes(image_folder):
    image_folder({"cat": 10, "dog": 10}, under="train")
    folder = image_folder({"cat": 3, "cow": 3}, under="test", first=20)
    assert f"{folder / 'test'} has the classes cat, cow but" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("locked", ["", "cat"])
def test_an_unreadable_folder_is_named(image_folder, locked):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / locked).chmod(0)
    try:
        assert "cannot be read (Permission denied)" in refusal(folder)
    finally:
        (folder / locked).chmod(0o755)
