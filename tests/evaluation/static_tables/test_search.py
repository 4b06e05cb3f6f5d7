import itertools

import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_table
from dfs_rl.evaluation.static_tables.config import SearchLimits
from dfs_rl.evaluation.static_tables.search import search_static_table

TABLES = list(itertools.product(range(3), repeat=4))


def cost(backbone, table):
    return float(backbone.costs.computation(torch.tensor([table])))


def brute_force(backbone, image_set, cap):
    """Best (right answers, mean log-likelihood) of all 81 tables under the cap, one by one."""
    best = None
    for table in TABLES:
        if cost(backbone, table) <= cap:
            records = evaluate_table(backbone, image_set, table, name="one")
            score = (int(records.correct.sum()), records.log_likelihood.mean().item())
            best = max(best, score) if best else score
    return best


@pytest.mark.parametrize("cap", [4.0, 25.0, 50.0, 72.0, 200.0])
def test_small_spaces_are_enumerated(backbone, val, cap):
    found = search_static_table(backbone, val, cap)
    assert found.exhaustive
    assert found.tables == sum(cost(backbone, table) <= cap for table in TABLES)
    assert found.computation == pytest.approx(cost(backbone, found.table))
    assert found.computation <= cap
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, cap)[0] / len(val))


@pytest.mark.parametrize("cap", [25.0, 50.0, 72.0, 200.0])
def test_climbing_finds_the_known_optimum(backbone, val, cap):
    limits = SearchLimits(tables=80)  # one less than there are
    found = search_static_table(backbone, val, cap, starts=[(0, 2, 2, 0)], limits=limits)
    assert not found.exhaustive
    assert found.computation <= cap
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, cap)[0] / len(val))


def test_the_allowance_is_kept_and_the_best_so_far_returned(backbone, val):
    limits = SearchLimits(tables=5)
    found = search_static_table(backbone, val, 72.0, limits=limits)
    assert found.tables == 5
    uniform = evaluate_table(backbone, val, (1,) * 4, name="uniform 2 bit")
    assert found.accuracy >= uniform.accuracy


def test_a_start_above_the_cap_is_lowered(backbone, val):
    found = search_static_table(
        backbone, val, 25.0, starts=[(2, 2, 2, 2)], limits=SearchLimits(tables=10)
    )
    assert found.computation <= 25.0


def test_finalists_are_ranked_on_the_whole_split(backbone, val):
    limits = SearchLimits(images=30, finalists=81)
    found = search_static_table(backbone, val, 72.0, limits=limits)
    assert (found.images, found.exhaustive) == (30, False)
    assert found.finalists == found.tables
    # With every table a finalist, the luck of the 30 images is gone.
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, 72.0)[0] / len(val))


def test_the_same_search_finds_the_same_table(backbone, val):
    limits = SearchLimits(images=40, tables=30, finalists=3)
    first = search_static_table(backbone, val, 60.0, limits=limits, batch_size=64)
    assert first == search_static_table(backbone, val, 60.0, limits=limits, batch_size=11)


def test_a_cap_below_the_cheapest_table_is_refused(backbone, val):
    with pytest.raises(ConfigError, match=r"no static table costs at most 0\.5 %"):
        search_static_table(backbone, val, 0.5)


def test_limits_must_be_positive():
    with pytest.raises(ConfigError, match=r"tables is 0; it must be at least 1"):
        SearchLimits(tables=0)


@pytest.mark.parametrize("cap", [25.0, 50.0, 72.0])
def test_a_start_is_ranked_on_the_whole_split_whatever_its_luck_on_a_part(backbone, val, cap):
    affordable = [table for table in TABLES if cost(backbone, table) <= cap]
    best = max(
        affordable,
        key=lambda table: evaluate_table(backbone, val, table, name="t").accuracy,
    )
    # Two images say next to nothing, and one finalist leaves no second look at any other table.
    limits = SearchLimits(images=2, tables=60, finalists=1)
    found = search_static_table(backbone, val, cap, starts=[best], limits=limits)
    expected = evaluate_table(backbone, val, best, name="t").accuracy
    assert found.accuracy == pytest.approx(expected)


@pytest.mark.parametrize("images", [32, 10_000])
def test_scores_of_earlier_searches_save_time_and_change_nothing(backbone, val, images):
    limits = SearchLimits(tables=30, images=images)
    fresh = [search_static_table(backbone, val, cap, limits=limits) for cap in (25.0, 50.0, 72.0)]
    known = {32: {}, len(val): {}}
    again = [
        search_static_table(backbone, val, cap, limits=limits, known=known.__getitem__)
        for cap in (25.0, 50.0, 72.0)
    ]
    assert again == fresh
    met = known[min(images, len(val))]
    assert len(met) < sum(found.tables for found in fresh)  # some were met more than once
    assert known[len(val)]  # finalists are scored on all images
    before = {number: dict(scores) for number, scores in known.items()}
    asked = search_static_table(backbone, val, 50.0, limits=limits, known=known.__getitem__)
    assert asked == fresh[1]
    assert known == before
