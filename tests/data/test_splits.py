import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.data import SplitFractions
from dfs_rl.data.splits import plan_splits, stratified_order
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
def test_splits_cover_everything_once_and_every_class_in_proportion(sizes, own_test, seed):
    labels = shuffled_labels(sizes, seed)
    test_labels = shuffled_labels(sizes, seed + 1) if own_test else None
    plan = plan_splits(labels, test_labels, FRACTIONS, class_names=names(sizes))
    shares = {"agent": 0.2, "val": 0.1}
    if own_test:
        assert sorted(plan.test.tolist()) == list(range(len(labels)))
    else:
        shares["test"] = 0.3
    carved = [plan.train, *(getattr(plan, name) for name in shares)]
    assert sorted(np.concatenate(carved).tolist()) == list(range(len(labels)))
    for name, share in shares.items():
        counts = np.bincount(labels[getattr(plan, name)], minlength=len(sizes))
        for count, size in zip(counts, sizes, strict=True):
            assert count == 2 or abs(count - share * size) <= 0.5
    assert np.bincount(labels[plan.train], minlength=len(sizes)).min() >= 2


def test_the_plan_is_always_the_same():
    labels = shuffled_labels([30, 50])
    first, again = (
        plan_splits(labels, None, FRACTIONS, class_names=["a", "b"], limit=40) for _ in range(2)
    )
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


@settings(max_examples=50, deadline=None)
@given(sizes=class_sizes, seed=st.integers(0, 99))
def test_every_prefix_holds_the_classes_in_proportion(sizes, seed):
    labels = shuffled_labels(sizes, seed)
    order = stratified_order(labels, stream="any")
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.cumsum(labels[order][:, None] == np.arange(len(sizes)), axis=0)  # [prefix, class]
    fair = np.arange(1, len(labels) + 1)[:, None] * np.array(sizes) / len(labels)
    assert np.abs(counts - fair).max() <= len(sizes) / 2 + 0.5


def test_balanced_classes_come_in_full_rounds_of_shuffled_order():
    labels = np.repeat(np.arange(5), 12)
    order = stratified_order(labels, stream="any")
    rounds = labels[order].reshape(12, 5)
    assert (np.sort(rounds, axis=1) == np.arange(5)).all()
    assert len({tuple(r) for r in rounds.tolist()}) > 6
    assert len({tuple(r) for r in (order.reshape(12, 5) % 12).tolist()}) > 6


def test_other_streams_are_other_orders():
    labels = shuffled_labels([30, 30])
    assert not np.array_equal(
        stratified_order(labels, stream="train"), stratified_order(labels, stream="test")
    )


def test_limit_takes_the_classes_in_proportion_from_each_source():
    labels, test_labels = shuffled_labels([300, 100]), shuffled_labels([60, 20], 1)
    plan = plan_splits(labels, test_labels, FRACTIONS, class_names=["a", "b"], limit=40)
    assert [len(rows) for rows in plan] == [28, 8, 4, 40]
    assert [np.bincount(labels[rows]).tolist() for rows in plan[:3]] == [[21, 7], [6, 2], [3, 1]]
    assert np.bincount(test_labels[plan.test]).tolist() == [30, 10]


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
    for few, all_rows in zip(part, whole, strict=True):
        assert set(few.tolist()) <= set(all_rows.tolist())
    assert len(part.test) <= limit
    n_carved = sum(len(rows) for rows in (part[:3] if own_test else part))
    assert n_carved <= limit


def test_a_limit_above_the_size_changes_nothing():
    labels = shuffled_labels([20, 20])
    plans = [
        plan_splits(labels, None, FRACTIONS, class_names=["a", "b"], limit=limit)
        for limit in (None, 1000)
    ]
    assert all(np.array_equal(*pair) for pair in zip(*plans, strict=True))


def test_a_class_too_small_to_share_is_named():
    with pytest.raises(DataError, match=r"class 'rare' has 7 train images; at least 2 .* 'test'\]"):
        plan_splits(shuffled_labels([50, 7]), None, FRACTIONS, class_names=["often", "rare"])


def test_eight_of_a_class_are_enough_for_four_splits():
    plan = plan_splits(shuffled_labels([8, 8]), None, FRACTIONS, class_names=["a", "b"])
    assert [len(rows) for rows in plan] == [4, 4, 4, 4]


def test_a_limit_too_small_is_named():
    with pytest.raises(
        DataError, match=r"split 'train' has no image of class 'a' \(limit 6\); every"
    ):
        plan_splits(shuffled_labels([50, 50]), None, FRACTIONS, class_names=["a", "b"], limit=6)
    with pytest.raises(ConfigError, match="limit is 0"):
        plan_splits(shuffled_labels([9, 9]), None, FRACTIONS, class_names=["a", "b"], limit=0)


def test_a_test_split_without_a_class_is_refused():
    with pytest.raises(DataError, match="'test' has no image of class 'b'; every split"):
        plan_splits(
            shuffled_labels([50, 50]), np.zeros(9, np.int64), FRACTIONS, class_names=["a", "b"]
        )


@pytest.mark.parametrize("shares", [{"agent": 0.0}, {"val": 1.0}, {"test": -0.1}])
def test_a_share_outside_zero_and_one_is_refused(shares):
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        SplitFractions(**shares)


def test_shares_that_leave_no_train_images_are_refused():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        SplitFractions(agent=0.5, val=0.3, test=0.2)
