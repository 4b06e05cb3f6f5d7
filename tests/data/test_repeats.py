import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.data import SPLIT_NAMES, load_dataset
from dfs_rl.data.splits import drop_repeats, find_repeats
from dfs_rl.errors import DataError


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=4, max_size=4))
def test_repeats_are_those_of_a_search_through_all_earlier_splits(parts):
    values = np.concatenate(parts).astype(np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (len(values), 1, 4, 4)).copy()
    lengths = list(map(len, parts))
    earlier = [{v for part in parts[:i] for v in part} for i in range(4)]
    own = [[v for v in part if v not in seen] for part, seen in zip(parts, earlier, strict=True)]
    expected = [v in seen for part, seen in zip(parts, earlier, strict=True) for v in part]
    assert find_repeats(pixels, lengths).tolist() == expected
    labels = np.zeros(len(values), dtype=np.int64)
    if not all(own):
        with pytest.raises(DataError, match="occurs in an earlier split too"):
            drop_repeats("x", ["a"], pixels, labels, lengths)
        return
    kept, left, counts = drop_repeats("x", ["a"], pixels, labels, lengths)
    assert kept[:, 0, 0, 0].tolist() == [v for part in own for v in part]
    assert len(left) == len(kept)
    assert counts == list(map(len, own))


@pytest.mark.parametrize("other_label", [False, True])
def test_a_test_image_that_train_holds_is_left_out_and_counted(
    image_folder, numbered, caplog, other_label
):
    image_folder({"cat": 20, "dog": 20}, under="train")
    folder = image_folder({"cat": 4, "dog": 4}, under="test", first=40)
    whole = load_dataset(str(folder))
    assert not caplog.records
    place = "dog" if other_label else "cat"
    for number in range(3):  # the same pixels in files of other bytes
        numbered(number).save(folder / "test" / place / f"again{number}.bmp")
    dataset = load_dataset(str(folder))
    for name in SPLIT_NAMES[:3]:
        assert dataset.split(name).images.equal(whole.split(name).images)
    images = [image.numpy().tobytes() for image in dataset.test.images]
    assert sorted(images) == sorted(image.numpy().tobytes() for image in whole.test.images)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 of test" in record.getMessage()


def test_repeats_among_train_images_are_left_out_of_the_later_split(image_folder, caplog):
    folder = image_folder({"cat": 40, "dog": 40})
    for path in list(folder.rglob("*.png")):
        path.with_name(f"copy{path.name}").write_bytes(path.read_bytes())
    dataset = load_dataset(str(folder))
    seen: set[bytes] = set()
    for name in SPLIT_NAMES:
        images = {image.numpy().tobytes() for image in dataset.split(name).images}
        assert not images & seen
        seen |= images
    assert len(seen) == 80
    assert len(caplog.records) == 1


def test_a_class_of_which_nothing_is_left_is_named(image_folder):
    image_folder({"cat": 10, "dog": 10}, under="train")
    image_folder({"cat": 3}, under="test", first=0)  # all of them train images
    folder = image_folder({"dog": 3}, under="test", first=30)
    with pytest.raises(DataError, match="class 'cat' in split 'test' occurs in an earlier split"):
        load_dataset(str(folder))
