import itertools

import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.config import SearchConfig
from dfs_rl.evaluation.static_tables.search import search_static_table

TABLES = list(itertools.product(range(3), repeat=4))


def cost(backbone, table):
    return float(backbone.costs.computation(torch.tensor([table])))


def brute_force(backbone, image_set, budget):
    """Best (right answers, mean log-likelihood) of all 81 tables under the budget, one by one."""
    best = None
    for table in TABLES:
        if cost(backbone, table) <= budget:
            records = evaluate_static_table(backbone, image_set, table, name="one")
            score = (int(records.correct.sum()), records.log_likelihood.mean().item())
            best = max(best, score) if best else score
    return best


@pytest.mark.parametrize("budget", [4.0, 25.0, 50.0, 72.0, 200.0])
def test_small_spaces_are_enumerated(backbone, val, budget):
    found = search_static_table(backbone, val, budget)
    assert found.exhaustive
    assert found.tables == sum(cost(backbone, table) <= budget for table in TABLES)
    assert found.computation == pytest.approx(cost(backbone, found.table))
    assert found.computation <= budget
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, budget)[0] / len(val))


@pytest.mark.parametrize("budget", [25.0, 50.0, 72.0, 200.0])
def test_climbing_finds_the_known_optimum(backbone, val, budget):
    search = SearchConfig(tables=80)  # one less than there are
    found = search_static_table(backbone, val, budget, initial_tables=[(0, 2, 2, 0)], search=search)
    assert not found.exhaustive
    assert found.computation <= budget
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, budget)[0] / len(val))


def test_the_allowance_is_kept_and_the_best_so_far_returned(backbone, val):
    search = SearchConfig(tables=5)
    found = search_static_table(backbone, val, 72.0, search=search)
    assert found.tables == 5
    uniform = evaluate_static_table(backbone, val, (1,) * 4, name="uniform 2 bit")
    assert found.accuracy >= uniform.accuracy


def test_a_start_above_the_cap_is_lowered(backbone, val):
    found = search_static_table(
        backbone, val, 25.0, initial_tables=[(2, 2, 2, 2)], search=SearchConfig(tables=10)
    )
    assert found.computation <= 25.0


def test_finalists_are_ranked_on_the_whole_split(backbone, val):
    search = SearchConfig(images=30, finalists=81)
    found = search_static_table(backbone, val, 72.0, search=search)
    assert (found.images, found.exhaustive) == (30, False)
    assert found.finalists == found.tables
    # With every table a finalist, the luck of the 30 images is gone.
    assert found.accuracy == pytest.approx(100 * brute_force(backbone, val, 72.0)[0] / len(val))


def test_the_same_search_finds_the_same_table(backbone, val):
    search = SearchConfig(images=40, tables=30, finalists=3)
    first = search_static_table(backbone, val, 60.0, search=search, batch_size=64)
    assert first == search_static_table(backbone, val, 60.0, search=search, batch_size=11)


def test_a_cap_below_the_cheapest_table_is_refused(backbone, val):
    with pytest.raises(ConfigError, match=r"no static table costs at most 0\.5 %"):
        search_static_table(backbone, val, 0.5)


def test_limits_must_be_positive():
    with pytest.raises(ConfigError, match=r"tables is 0; it must be at least 1"):
        SearchConfig(tables=0)


@pytest.mark.parametrize("budget", [25.0, 50.0, 72.0])
def test_a_start_is_ranked_on_the_whole_split_whatever_its_luck_on_a_part(backbone, val, budget):
    affordable = [table for table in TABLES if cost(backbone, table) <= budget]
    best = max(
        affordable,
        key=lambda table: evaluate_static_table(backbone, val, table, name="t").accuracy,
    )
    # Two images say next to nothing, and one finalist leaves no second look at any other table.
    search = SearchConfig(images=2, tables=60, finalists=1)
    found = search_static_table(backbone, val, budget, initial_tables=[best], search=search)
    expected = evaluate_static_table(backbone, val, best, name="t").accuracy
    assert found.accuracy == pytest.approx(expected)


@pytest.mark.parametrize("images", [32, 10_000])
def test_scores_of_earlier_searches_save_time_and_change_nothing(backbone, val, images):
    search = SearchConfig(tables=30, images=images)
    fresh = [
        search_static_table(backbone, val, budget, search=search) for budget in (25.0, 50.0, 72.0)
    ]
    cached_scores = {32: {}, len(val): {}}
    again = [
        search_static_table(
            backbone, val, budget, search=search, cached_scores=cached_scores.__getitem__
        )
        for budget in (25.0, 50.0, 72.0)
    ]
    assert again == fresh
    met = cached_scores[min(images, len(val))]
    assert len(met) < sum(found.tables for found in fresh)  # some were met more than once
    assert cached_scores[len(val)]  # finalists are scored on all images
    before = {number: dict(scores) for number, scores in cached_scores.items()}
    asked = search_static_table(
        backbone, val, 50.0, search=search, cached_scores=cached_scores.__getitem__
    )
    assert asked == fresh[1]
    assert cached_scores == before
