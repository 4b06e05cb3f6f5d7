import itertools

import pytest

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTableScorer,
    is_within_budget,
    score_static_tables,
    static_table_computation,
)
from dfs_rl.evaluation.static_tables.search import greedy_path, search_static_table
from tests.evaluation.conftest import MixBackbone
from tests.helpers.planted_table import (
    BEST_ACCURACY,
    BEST_TABLE,
    BUDGET,
    UNIFORM_ACCURACY,
    TableBackbone,
    table_images,
)

TABLES = list(itertools.product(range(3), repeat=4))
BUDGETS = [25.0, 50.0, 72.0, 200.0]


@pytest.fixture(scope="module")
def table_scores(backbone, val):
    """Computation and score of each of the 81 tables."""
    scores = zip(TABLES, score_static_tables(backbone, val, TABLES), strict=True)
    return {table: (static_table_computation(backbone.costs, table), s) for table, s in scores}


def best_accuracy(table_scores, val, budget):
    return 100 * max(s.correct for cost, s in table_scores.values() if cost <= budget) / len(val)


@pytest.mark.parametrize("budget", [4.0, *BUDGETS])
def test_small_spaces_are_enumerated(backbone, val, table_scores, budget):
    table, found = search_static_table(backbone, val, budget)
    assert found.exhaustive
    assert found.tables == sum(cost <= budget for cost, _ in table_scores.values())
    assert found.computation == pytest.approx(table_scores[table][0])
    assert found.computation <= budget
    assert found.accuracy == pytest.approx(best_accuracy(table_scores, val, budget))


@pytest.mark.parametrize("budget", BUDGETS)
def test_climbing_finds_the_optimum(backbone, val, table_scores, budget):
    search = SearchConfig(tables=80)  # one less than there are
    _, found = search_static_table(
        backbone, val, budget, initial_tables=[(0, 2, 2, 0)], search=search
    )
    assert not found.exhaustive
    assert found.computation <= budget
    assert found.accuracy == pytest.approx(best_accuracy(table_scores, val, budget))


def test_limit_of_tables_is_kept(backbone, val):
    initial = [(2, 2, 2, 2)]
    _, found = search_static_table(
        backbone, val, 25.0, initial_tables=initial, search=SearchConfig(tables=5)
    )
    assert found.tables == 5
    assert found.computation <= 25.0
    uniform = evaluate_static_table(backbone, val, (1,) * 4, name="uniform 2 bit")
    assert found.accuracy >= uniform.accuracy


def test_whole_split_ranks_the_finalists(backbone, val, table_scores):
    search = SearchConfig(images=30, finalists=81)
    _, found = search_static_table(backbone, val, 72.0, search=search)
    assert (found.images, found.exhaustive) == (30, False)
    assert found.finalists == found.tables
    # With every table a finalist, the luck of the 30 images is gone.
    assert found.accuracy == pytest.approx(best_accuracy(table_scores, val, 72.0))


def test_search_is_deterministic(backbone, val):
    search = SearchConfig(images=40, tables=30, finalists=3)
    first = search_static_table(backbone, val, 60.0, search=search, batch_size=64)
    assert first == search_static_table(backbone, val, 60.0, search=search, batch_size=11)


def test_limits_that_cannot_be_met_are_refused(backbone, val):
    with pytest.raises(ConfigError, match=r"budget is 0\.5 %; no static bit table costs less"):
        search_static_table(backbone, val, 0.5)
    with pytest.raises(ConfigError, match=r"tables is 0; it must be at least 1"):
        SearchConfig(tables=0)


@pytest.mark.parametrize("budget", BUDGETS[:3])
def test_initial_tables_are_finalists(backbone, val, table_scores, budget):
    affordable = [table for table, (cost, _) in table_scores.items() if cost <= budget]
    best = max(affordable, key=lambda table: table_scores[table][1].correct)
    # Two images say next to nothing, and one finalist is no second look at any other table.
    search = SearchConfig(images=2, tables=60, finalists=1)
    _, found = search_static_table(backbone, val, budget, initial_tables=[best], search=search)
    assert found.accuracy == pytest.approx(best_accuracy(table_scores, val, budget))


@pytest.mark.parametrize("images", [32, 10_000])
def test_cached_scores_change_no_result(backbone, val, images):
    search = SearchConfig(tables=20, images=images)
    cached_scores = {32: {}, len(val): {}}

    def searches(**cache):
        return [search_static_table(backbone, val, b, search=search, **cache) for b in BUDGETS[:2]]

    fresh = searches()
    assert searches(cached_scores=cached_scores) == fresh
    known = cached_scores[min(images, len(val))]
    assert len(known) < sum(found.tables for _, found in fresh)  # some tables occur twice
    assert cached_scores[len(val)]  # finalists are scored on all images
    before = {number: dict(scores) for number, scores in cached_scores.items()}
    assert searches(cached_scores=cached_scores) == fresh
    assert cached_scores == before


# --- greedy descent -----------------------------------------------------------


def test_planted_table_is_the_best():
    backbone, images = TableBackbone(), table_images()
    tables = [
        table
        for table in itertools.product(range(4), repeat=3)
        if is_within_budget(backbone.costs, table, BUDGET)
    ]
    scorer = StaticTableScorer(backbone, images)
    assert max(tables, key=scorer.accuracy) == BEST_TABLE
    assert scorer.accuracy(BEST_TABLE) == BEST_ACCURACY
    assert scorer.accuracy((1, 1, 1)) == UNIFORM_ACCURACY


@pytest.mark.parametrize(("budget", "last"), [(BUDGET, BEST_TABLE), (100.0, (3, 3, 3))])
def test_greedy_descent_ends_at_the_planted_table(budget, last):
    backbone = TableBackbone()
    path = list(greedy_path(StaticTableScorer(backbone, table_images()), backbone.costs, budget))
    assert (path[0], path[-1]) == ((3, 3, 3), last)


@pytest.mark.parametrize("budget", [4.0, 25.0, 72.0])
def test_greedy_steps_lose_least_per_saving(backbone, val, table_scores, budget):
    path = list(greedy_path(StaticTableScorer(backbone, val), backbone.costs, budget))
    assert table_scores[path[-1]][0] <= budget < table_scores[path[-2]][0]
    for before, after in itertools.pairwise(path):
        cost, score = table_scores[before]
        losses = {}
        for layer in range(4):
            lowered = tuple(o - (i == layer) for i, o in enumerate(before))
            if min(lowered) >= 0:
                other_cost, other = table_scores[lowered]
                loss = score.log_likelihood - other.log_likelihood
                losses[lowered] = loss / (cost - other_cost)
        assert losses[after] == pytest.approx(min(losses.values()))


def test_greedy_budget_below_tables_without_exit(val):
    """An exit makes the cheapest table cheaper; a greedy descent uses none."""
    backbone = MixBackbone((4, 8), exits=(1,))
    least = static_table_computation(backbone.costs, (0,) * 4)
    scorer = StaticTableScorer(backbone, val)
    assert list(greedy_path(scorer, backbone.costs, least))[-1] == (0,) * 4
    with pytest.raises(ConfigError, match="no static bit table without an exit costs less"):
        list(greedy_path(scorer, backbone.costs, least - 0.1))
