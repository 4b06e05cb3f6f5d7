import itertools

import pytest

from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.budget import is_within_budget, static_table_computation
from dfs_rl.evaluation.static_tables.greedy import greedy_path
from dfs_rl.evaluation.static_tables.scoring import StaticTableScorer
from tests.helpers.planted_table import (
    BEST_ACCURACY,
    BEST_TABLE,
    BUDGET,
    UNIFORM_ACCURACY,
    TableBackbone,
    table_images,
)


def accuracy(backbone, images, table):
    return evaluate_static_table(backbone, images, table, name="t").accuracy


def test_the_planted_best_table_is_the_best_of_all():
    backbone, images = TableBackbone(), table_images()
    affordable = [
        table
        for table in itertools.product(range(4), repeat=3)
        if is_within_budget(backbone.costs, table, BUDGET)
    ]
    best = max(affordable, key=lambda table: accuracy(backbone, images, table))
    assert best == BEST_TABLE
    assert accuracy(backbone, images, BEST_TABLE) == BEST_ACCURACY
    assert accuracy(backbone, images, (1, 1, 1)) == UNIFORM_ACCURACY


def test_it_ends_at_the_planted_best_table():
    backbone = TableBackbone()
    path = list(greedy_path(StaticTableScorer(backbone, table_images()), backbone.costs, BUDGET))
    assert path[0] == (3, 3, 3)
    assert path[-1] == BEST_TABLE


@pytest.mark.parametrize("budget", [4.0, 25.0, 72.0])
def test_every_step_loses_least_for_what_it_saves(backbone, val, budget):
    costs = backbone.costs
    path = list(greedy_path(StaticTableScorer(backbone, val), costs, budget))
    assert is_within_budget(costs, path[-1], budget)
    assert not any(is_within_budget(costs, table, budget) for table in path[:-1])

    def likelihood(table):
        return float(evaluate_static_table(backbone, val, table, name="t").log_likelihood.mean())

    for before, after in itertools.pairwise(path):
        prices = {}
        for layer in range(4):
            lowered = tuple(o - (i == layer) for i, o in enumerate(before))
            if min(lowered) >= 0:
                saved = static_table_computation(costs, before) - static_table_computation(
                    costs, lowered
                )
                prices[lowered] = (likelihood(before) - likelihood(lowered)) / saved
        assert prices[after] == pytest.approx(min(prices.values()))


def test_a_cap_that_the_dearest_table_keeps_to_changes_nothing():
    backbone = TableBackbone()
    path = list(greedy_path(StaticTableScorer(backbone, table_images()), backbone.costs, 100.0))
    assert path == [(3, 3, 3)]
