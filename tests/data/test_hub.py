"""What the ``datasets`` library hands over, and a hub that does not answer; needs no network."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dfs_rl.data.hub import sources_of
from dfs_rl.errors import DataError

TRAIN = [0, 1] * 10
TEST = [1, 0, 1]

LOAD = """
import sys
from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.errors import DataError
try:
    dataset = load_dataset("somebody/pets")
    print(dataset.name, dataset.class_names, [len(dataset.split(name)) for name in SPLIT_NAMES])
except DataError as error:
    print(error)
"""


@pytest.fixture
def pets(numbered):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )

    def make(labels: list[int], first: int = 0):
        n = len(labels)
        photos = [numbered(first + i) for i in range(n)]
        columns = {"id": list(range(n)), "photo": photos, "kind": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict(train=make(TRAIN), test=make(TEST, first=20))


def test_splits_become_sources(pets, numbered):
    name, train, test = sources_of("somebody/pets", pets)
    assert name == "somebody/pets"
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == TRAIN
    assert test.labels.tolist() == TEST
    wanted = np.array([False, True, True])
    images = list(test.read(wanted))
    assert [image.row for image in images] == [1, 2]
    assert images[0].place == "somebody/pets test row 1"
    for image in images:
        expected = pets["test"][image.row]["photo"]
        assert image.data.startswith(b"\x89PNG")
        assert np.array_equal(np.asarray(expected), np.asarray(numbered(20 + image.row)))


def test_images_that_lie_in_files_are_read_from_there(pets, numbered, tmp_path):
    import datasets

    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        numbered(number).save(paths[-1])
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    columns = {"image": paths, "label": [0, 1, 0, 1]}
    stored = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    train = sources_of("somebody/files", stored).train
    data = [image.data for image in train.read(np.ones(4, dtype=bool))]
    assert data == [Path(path).read_bytes() for path in paths]


def test_images_whose_files_are_gone_are_refused(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [str(tmp_path / "gone.png")], "label": [0]}
    stored = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    train = sources_of("somebody/files", stored).train
    with pytest.raises(DataError, match=r"somebody/files train has images that .*gone\.png"):
        next(train.read(np.ones(1, dtype=bool)))


def test_a_train_split_is_needed(pets):
    del pets["train"]
    with pytest.raises(DataError, match=r"'somebody/pets' has the splits \['test'\]; 'train' is"):
        sources_of("somebody/pets", pets)


def test_test_splits_go_by_their_words_and_others_are_logged(pets, caplog):
    import datasets

    def sizes(**splits):
        caplog.clear()
        _, train, test = sources_of("somebody/pets", datasets.DatasetDict(splits))
        logged = [record.getMessage().split(" (")[0] for record in caplog.records]
        return len(train.labels), len(test.labels), logged

    train, test = pets["train"], pets["test"]
    assert sizes(Training=train, testing=test) == (20, 3, [])
    assert sizes(train=train, test=test, eval=train, train_small=test) == (
        20,
        3,
        ["Not used of somebody/pets: eval, train_small"],
    )


def run(cache: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={
            **os.environ,
            "HF_HOME": str(cache),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_HUB_OFFLINE": "0",
            **variables,
        },
    )
    assert "Retry" not in done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "variables",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
)
def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, variables):
    message = run(tmp_path, **variables)
    assert message.startswith("data set 'somebody/pets' is no existing folder, the hub cannot be")
    assert message.count("\n") == 0


def test_without_network_the_cache_serves(tmp_path, write_parquet):
    """The library's cache is laid out as ``owner___name/config/version/hash/name-split.arrow``."""
    import datasets

    names = ["cat", "dog"]
    files = {
        "train": str(write_parquet(tmp_path / "train.parquet", TRAIN, class_names=names)),
        "test": str(write_parquet(tmp_path / "test.parquet", TEST, class_names=names, first=20)),
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
    expected = "somebody/pets ('cat', 'dog') [12, 4, 4, 3]"
    assert run(tmp_path / "hf", HF_ENDPOINT="http://127.0.0.1:9") == expected
