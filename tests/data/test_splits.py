import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.data import SPLIT_NAMES, SplitFractions, load_dataset
from dfs_rl.data.splits import drop_repeats, plan_splits, stratified_order
from dfs_rl.errors import ConfigError, DataError

FRACTIONS = SplitFractions(agent=0.2, val=0.1, test=0.3)
class_sizes = st.lists(st.integers(8, 60), min_size=2, max_size=5)


def shuffled_labels(sizes: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


def names(sizes: list[int]) -> list[str]:
    return [f"class {i}" for i in range(len(sizes))]


@settings(max_examples=50, deadline=None)
@given(sizes=class_sizes, own_test=st.booleans(), seed=st.integers(0, 99))
def test_splits_partition_the_images_by_class(sizes, own_test, seed):
    labels = shuffled_labels(sizes, seed)
    test_labels = shuffled_labels(sizes, seed + 1) if own_test else None
    plan = plan_splits(labels, test_labels, FRACTIONS, class_names=names(sizes))
    shares = {"agent": 0.2, "val": 0.1}
    if own_test:
        assert sorted(plan["test"].tolist()) == list(range(len(labels)))
    else:
        shares["test"] = 0.3
    carved = [plan["train"], *(plan[name] for name in shares)]
    assert sorted(np.concatenate(carved).tolist()) == list(range(len(labels)))
    for name, share in shares.items():
        counts = np.bincount(labels[plan[name]], minlength=len(sizes))
        for count, size in zip(counts, sizes, strict=True):
            assert count == 2 or abs(count - share * size) <= 0.5
    assert np.bincount(labels[plan["train"]], minlength=len(sizes)).min() >= 2


@pytest.mark.parametrize("limits", [(40, 40), (None, 1000)])  # the latter is above the size
def test_the_plan_is_always_the_same(limits):
    labels = shuffled_labels([30, 50])
    plans = [
        plan_splits(labels, None, FRACTIONS, class_names=["a", "b"], limit=limit)
        for limit in limits
    ]
    pairs = zip(*(plan.values() for plan in plans), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


@settings(max_examples=50, deadline=None)
@given(sizes=class_sizes, seed=st.integers(0, 99))
def test_prefixes_have_the_classes_in_proportion(sizes, seed):
    labels = shuffled_labels(sizes, seed)
    order = stratified_order(labels, stream="any")
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.cumsum(labels[order][:, None] == np.arange(len(sizes)), axis=0)  # [prefix, class]
    fair = np.arange(1, len(labels) + 1)[:, None] * np.array(sizes) / len(labels)
    assert np.abs(counts - fair).max() <= len(sizes) / 2 + 0.5


def test_balanced_classes_come_in_rounds():
    labels = np.repeat(np.arange(5), 12)
    order = stratified_order(labels, stream="any")
    rounds = labels[order].reshape(12, 5)
    assert (np.sort(rounds, axis=1) == np.arange(5)).all()
    assert len({tuple(r) for r in rounds.tolist()}) > 6
    assert len({tuple(r) for r in (order.reshape(12, 5) % 12).tolist()}) > 6


def test_limit_keeps_the_proportions():
    labels, test_labels = shuffled_labels([300, 100]), shuffled_labels([60, 20], 1)
    plan = plan_splits(labels, test_labels, FRACTIONS, class_names=["a", "b"], limit=40)
    assert [(name, len(rows)) for name, rows in plan.items()] == [
        ("train", 28),
        ("agent", 8),
        ("val", 4),
        ("test", 40),
    ]
    carved = [np.bincount(labels[plan[name]]).tolist() for name in ("train", "agent", "val")]
    assert carved == [[21, 7], [6, 2], [3, 1]]
    assert np.bincount(test_labels[plan["test"]]).tolist() == [30, 10]


@settings(max_examples=50, deadline=None)
@given(sizes=class_sizes, own_test=st.booleans(), share=st.floats(0.5, 1.2))
def test_a_limited_split_is_a_part_of_the_whole_one(sizes, own_test, share):
    labels = shuffled_labels(sizes)
    test_labels = shuffled_labels(sizes, 1) if own_test else None
    limit = max(1, int(share * len(labels)))
    whole = plan_splits(labels, test_labels, FRACTIONS, class_names=names(sizes))
    try:
        part = plan_splits(labels, test_labels, FRACTIONS, class_names=names(sizes), limit=limit)
    except DataError as error:  # very uneven classes
        assert f"(limit {limit})" in str(error)  # noqa: PT017
        return
    for name, rows in part.items():
        assert set(rows.tolist()) <= set(whole[name].tolist())
    assert len(part["test"]) <= limit
    carved = [rows for name, rows in part.items() if not (own_test and name == "test")]
    assert sum(map(len, carved)) <= limit


@pytest.mark.parametrize(
    ("sizes", "test_labels", "limit", "error", "message"),
    [
        ([50, 7], None, None, DataError, r"class '1' has 7 train images; at least 2 .* 'test'\]"),
        ([50, 50], None, 6, DataError, r"split 'train' has no image of class '0' \(limit 6\); ev"),
        ([50, 50], np.zeros(9, np.int64), None, DataError, "'test' has no image of class '1'; ev"),
        ([9, 9], None, 0, ConfigError, "limit is 0"),
    ],
)
def test_impossible_splits_are_refused(sizes, test_labels, limit, error, message):
    labels = shuffled_labels(sizes)
    with pytest.raises(error, match=message):
        plan_splits(labels, test_labels, SplitFractions(), class_names=["0", "1"], limit=limit)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"agent": 0.0}, "agent is 0.0; it must be above 0"),
        ({"val": 1.0}, "val is 1.0; it must be below 1"),
        ({"test": -0.1}, "test is -0.1; it must be above 0"),
        ({"agent": 0.5, "val": 0.3, "test": 0.2}, "nothing is left to train"),
    ],
)
def test_invalid_shares_are_refused(shares, message):
    with pytest.raises(ConfigError, match=message):
        SplitFractions(**shares)


# Repeated images.


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=4, max_size=4))
def test_repeats_equal_those_of_a_plain_search(parts):
    values = np.concatenate(parts).astype(np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (len(values), 1, 4, 4)).copy()
    lengths = list(map(len, parts))
    earlier = [{v for part in parts[:i] for v in part} for i in range(4)]
    own = [[v for v in part if v not in seen] for part, seen in zip(parts, earlier, strict=True)]
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
def test_test_images_of_train_are_left_out(image_folder, numbered, caplog, other_label):
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
