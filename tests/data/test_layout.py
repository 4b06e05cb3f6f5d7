import numpy as np
import pytest

from dfs_rl.data import load_dataset
from dfs_rl.data.layout import SPLIT_WORDS, read_split_label, read_tree
from dfs_rl.errors import DataError

NAMES = ["cat", "dog"]


def pixels(images) -> set[bytes]:
    return {np.asarray(image).transpose(2, 0, 1).tobytes() for image in images}


def check_like_the_library(folder, builder: str, tmp_path) -> None:
    """The ``datasets`` library finds the same train and test images and classes."""
    import datasets

    ours = load_dataset(str(folder))
    theirs = datasets.load_dataset(builder, data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    train = [
        image.numpy() for split in (ours.train, ours.agent, ours.val) for image in split.images
    ]
    column = "image" if builder == "imagefolder" else "img"
    assert {image.tobytes() for image in train} == pixels(theirs["train"][column])
    assert {image.numpy().tobytes() for image in ours.test.images} == pixels(theirs["test"][column])
    assert ours.class_names == tuple(theirs["train"].features["label"].names)


def test_the_words_are_those_of_the_datasets_library():
    from datasets.data_files import SPLIT_KEYWORDS

    names = {"train": "train", "validation": "val", "test": "test"}
    theirs = {word: names[str(split)] for split, words in SPLIT_KEYWORDS.items() for word in words}
    assert theirs == SPLIT_WORDS


@pytest.mark.parametrize(
    ("name", "split", "rest"),
    [
        ("Train", "train", ()),
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


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("train/train.parquet", "test/test.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        (
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
            "data/test-00000-of-00001-0123456789abcdef.parquet",
        ),
        ("pets_train.parquet", "pets_test.parquet"),
        ("training/part-0.parquet", "evaluation/part-0.parquet"),
    ],
)
def test_parquet_layouts_are_read_as_the_library_does(tmp_path, write_parquet, train, test):
    folder = tmp_path / "pets"
    write_parquet(folder / train, [0, 1] * 10, class_names=NAMES)
    write_parquet(folder / test, [0, 1] * 5, class_names=NAMES, first=20)
    check_like_the_library(folder, "parquet", tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("pets-train", "pets-eval"),
    ],
)
def test_folder_layouts_are_read_as_the_library_does(tmp_path, image_folder, train, test):
    image_folder({"cat": 10, "dog": 10}, under=train)
    folder = image_folder({"cat": 3, "dog": 3}, under=test, first=20)
    check_like_the_library(folder, "imagefolder", tmp_path)


def test_a_link_to_a_holder_is_refused(image_folder):
    folder = image_folder({"cat": 10, "dog": 10})
    (folder / "dog" / "again").symlink_to(folder, target_is_directory=True)
    with pytest.raises(DataError, match=r"dog/again is a link to a folder that holds it"):
        read_tree(folder)


def test_folders_may_be_links(image_folder, tmp_path):
    image_folder({"cat": 2, "dog": 2}, under="stored")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "pictures" / "stored" / "cat")
    tree = read_tree(tmp_path / "linked")
    assert sorted(tree["cat",]) == ["000.png", "001.png"]
