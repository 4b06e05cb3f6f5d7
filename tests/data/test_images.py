import pickle

import pytest
import torch

from dfs_rl.data import SPLIT_NAMES, Dataset, ImageSet
from dfs_rl.errors import DataError


def make_set(n: int = 4, seed: int = 0, shape: tuple[int, ...] = (3, 5, 6)) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(n) % 2)


def make_dataset(**changes: object) -> Dataset:
    fields = {name: make_set(4, seed) for seed, name in enumerate(SPLIT_NAMES)}
    values = {"name": "toy", "class_names": ("a", "b"), "flip": True, **fields, **changes}
    return Dataset(**values)  # type: ignore[arg-type]


def test_subset_takes_rows_in_the_given_order():
    image_set = make_set(4)
    subset = image_set.subset(torch.tensor([2, 0]))
    assert torch.equal(subset.images, torch.stack([image_set.images[2], image_set.images[0]]))
    assert subset.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 5, 6), torch.zeros(2, dtype=torch.int64), r"float32 \[2, 3, 5, 6\]"),
        (torch.zeros(3, 5, 6, dtype=torch.uint8), torch.zeros(3).long(), r"uint8 \[n, c, h, w\]"),
        (torch.zeros(2, 5, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), "1 to 4 channels"),
        (torch.zeros(2, 3, 3, 8, dtype=torch.uint8), torch.zeros(2).long(), "at least 4 pixels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3).long(), "one per image"),
    ],
)
def test_image_set_refuses_what_is_no_image_set(images, labels, message):
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels)


def test_image_set_refuses_two_devices():
    with pytest.raises(DataError, match="one device"):
        ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, device="meta").long())


def test_dataset_properties():
    dataset = make_dataset()
    assert dataset.image_shape == (3, 5, 6)
    assert dataset.n_classes == 2
    assert dataset.memory_bytes == 16 * (3 * 5 * 6 + 8)
    assert dataset.split("agent") is dataset.agent


def test_dataset_refuses_an_unknown_split():
    with pytest.raises(DataError, match=r"'validation' is not a split; allowed are \['train'"):
        make_dataset().split("validation")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",)}, "at least 2"),
        ({"val": make_set(0)}, "'val' of data set 'toy' is empty"),
        ({"test": make_set(4, shape=(1, 5, 6))}, "one shape"),
        (
            {"agent": ImageSet(make_set().images, torch.arange(4))},
            "labels 0 to 3; allowed are 0 to 1",
        ),
        ({"agent": ImageSet(make_set().images, torch.arange(4) - 1)}, "labels -1"),
    ],
)
def test_dataset_refuses_splits_that_do_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        make_dataset(**changes)


def test_pickled_data_sets_share_memory():
    dataset, buffers = make_dataset(), []
    data = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
    read_only = [memoryview(buffer).toreadonly() for buffer in buffers]  # as in Ray's object store
    back = pickle.loads(data, buffers=read_only)
    assert back.fingerprint == dataset.fingerprint
    assert back.test.images.data_ptr() == dataset.test.images.data_ptr()


def test_fingerprint_is_a_function_of_the_content():
    fingerprint = make_dataset().fingerprint
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert make_dataset(name="other").fingerprint == fingerprint

    pixel = make_set(4, 0)
    pixel.images[3, 2, 4, 5] ^= 1
    label = make_set(4, 0)
    label.labels[0] = 1
    changed = [
        make_dataset(train=pixel),
        make_dataset(train=label),
        make_dataset(class_names=("a", "c")),
        make_dataset(train=make_set(4, 1), agent=make_set(4, 0)),
        make_dataset(val=make_set(3, 2)),
    ]
    assert len({fingerprint, *(dataset.fingerprint for dataset in changed)}) == 6
