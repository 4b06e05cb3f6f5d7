import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.costs import ALLOWED_BITS, BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.data.images import ImageSet
from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTableScorer,
    cheapest_static_table,
    evenly_spaced_subset,
    fit_to_budget,
    fit_to_budget_haq,
    is_within_budget,
    score_static_tables,
    static_table_computation,
)
from tests.evaluation.conftest import MixBackbone
from tests.helpers.latencies import made_up_profile

TABLES = [(0, 1, 2, 0), (2, 2, 2, 2), (0, 1, 0, 0), (2, 2, 2, 2)]


@st.composite
def problems(draw):
    """Return a cost table, a static bit table and a budget that the cheapest table meets."""
    bits = draw(st.sets(st.sampled_from(ALLOWED_BITS), min_size=1))
    options = BitOptions(tuple(sorted(bits)))
    macs = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
    stem = FixedCost(name="stem", macs=draw(st.integers(0, 10**5)), bits=8)
    costs = CostTable(options=options, layer_macs=tuple(macs), fixed=(stem,))
    table = tuple(draw(st.integers(0, options.full)) for _ in macs)
    least, most = (percent(costs, (option,) * len(macs)) for option in (0, options.full))
    return costs, table, least + draw(st.floats(0, 1.2)) * (most - least)


def percent(costs, table):
    """Return the computation in closed form, in whole numbers but for the last division."""
    spent = sum(m * costs.options[o] ** 2 for m, o in zip(costs.layer_macs, table, strict=True))
    fixed = sum(part.macs * part.bits**2 for part in costs.fixed)
    return 100 * (spent + fixed) / (32**2 * sum(costs.layer_macs))


@pytest.mark.parametrize("fit", [fit_to_budget_haq, fit_to_budget])
@given(problem=problems())
def test_fitted_tables_are_within_budget(fit, problem):
    costs, table, budget = problem
    assert static_table_computation(costs, table) == pytest.approx(percent(costs, table))
    fitted = fit(table, costs, budget)
    assert percent(costs, fitted) <= budget + 1e-6
    assert all(0 <= low <= high for low, high in zip(fitted, table, strict=True))
    assert fit(fitted, costs, budget) == fitted
    if is_within_budget(costs, table, budget):
        assert fitted == table


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=4),
    st.sampled_from([(0, 2, 32), (2, 4), (8,)]),
    st.dictionaries(st.integers(1, 3), st.integers(0, 3000), min_size=1),
    st.integers(0, 3000),
    st.floats(0, 1),
)
def test_cheapest_table_also_with_exits(macs, options, exits, last, share):
    costs = CostTable(
        options=BitOptions(options),
        layer_macs=tuple(macs),
        fixed=(FixedCost(name="mandatory", macs=last, bits=8, layer=len(macs) - 1),),
        exits=tuple(
            ExitCost(after=after, macs=paid, bits=8)
            for after, paid in sorted(exits.items())
            if after < len(macs)
        ),
    )
    tables = list(itertools.product(range(costs.n_actions), repeat=len(macs)))
    every = costs.computation(costs.canonicalize(torch.tensor(tables)))
    cheapest = static_table_computation(costs, cheapest_static_table(costs))
    assert cheapest == pytest.approx(float(every.min()))
    budget = cheapest + share * (float(every.max()) - cheapest)
    for table in tables[:: max(1, len(tables) // 8)]:
        assert is_within_budget(costs, fit_to_budget(table, costs, budget), budget)


@given(problems())
def test_haq_lowers_the_last_layers_first(problem):
    costs, table, budget = problem
    # HAQ's loop: rounds from the last layer to the first, until the table fits.
    expected = list(table)
    while not is_within_budget(costs, tuple(expected), budget):
        for i in range(len(expected)):
            if expected[-(i + 1)] > 0:
                expected[-(i + 1)] -= 1
            if is_within_budget(costs, tuple(expected), budget):
                break
    assert fit_to_budget_haq(table, costs, budget) == tuple(expected)


@pytest.mark.parametrize("fit", [fit_to_budget_haq, fit_to_budget])
@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(1, 9)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_measured_costs_may_fall_with_bits(fit, times, share):
    plain = CostTable(options=BitOptions((2, 4, 32)), layer_macs=(1,) * len(times))
    profile = made_up_profile(plain, layer=lambda i, bits: times[i][plain.options.index(bits)])
    costs = plain.with_cost_model("latency", profile)
    least, most = (100 * sum(map(end, times)) / costs.total_cost for end in (min, max))
    budget = least + share * (most - least)
    assert static_table_computation(costs, cheapest_static_table(costs)) == pytest.approx(least)
    tables = list(itertools.product(range(3), repeat=len(times)))
    for table in tables[:: max(1, len(tables) // 8)]:
        fitted = fit(table, costs, budget)
        assert is_within_budget(costs, fitted, budget)
        assert fitted == table or not is_within_budget(costs, table, budget)


@pytest.mark.parametrize("fit", [fit_to_budget_haq, fit_to_budget])
def test_budget_below_every_table_is_refused(fit):
    costs = MixBackbone((4, 8), exits=(1,)).costs
    least = static_table_computation(costs, (0, 2, 2, 2) if fit is fit_to_budget else (0,) * 4)
    fit((1, 1, 1, 1), costs, least)
    with pytest.raises(ConfigError, match=rf"budget is .* costs less than {least:.4g} %"):
        fit((1, 1, 1, 1), costs, least - 0.01)


def test_exact_budget_suffices():
    costs = CostTable(options=BitOptions((0, 3)), layer_macs=(7, 11, 13))
    exact = float(costs.computation(torch.tensor([[1, 1, 1]])))
    assert is_within_budget(costs, (1, 1, 1), exact)
    assert not is_within_budget(costs, (1, 1, 1), exact - 1e-6)


def test_scorer_runs_each_table_once(backbone, val):
    scorer = StaticTableScorer(backbone, val)
    scores = scorer.score(TABLES)
    for table, score in zip(TABLES, scores, strict=True):
        records = evaluate_static_table(backbone, val, table, name="t")
        assert score.correct == int(records.correct.sum())
        assert score.log_likelihood == pytest.approx(float(records.log_likelihood.mean()))
        assert scorer.accuracy(table) == 100 * score.correct / len(val)
    run = backbone.layers[0].images_run
    assert scorer.score(TABLES) == scores
    assert list(scorer.scores) == [TABLES[0], TABLES[1], TABLES[2]]
    second = StaticTableScorer(backbone, val, cached_scores=scorer.cached_scores)
    assert second.scores == {}
    assert second.score(TABLES[:1]) == scores[:1]
    assert list(second.scores) == TABLES[:1]
    assert backbone.layers[0].images_run == run


def test_tables_share_their_prefixes(backbone, val):
    tables = [(0, 1, 2, 0), (0, 1, 2, 1), (0, 1, 2, 2), (0, 2, 0, 0), (0, 1, 2, 1)]
    before = sum(layer.images_run for layer in backbone.layers)
    score_static_tables(backbone, val, tables, batch_size=60)
    run = sum(layer.images_run for layer in backbone.layers) - before
    assert run == len(val) * (1 + 2 + 2 + 4)  # distinct prefixes of length 1 to 4


def test_subset_of_a_sorted_split_has_every_class():
    labels = torch.arange(10).repeat_interleave(7)
    images = ImageSet(torch.zeros(70, 1, 4, 4, dtype=torch.uint8), labels)
    assert evenly_spaced_subset(images, 20).labels.bincount().tolist() == [2] * 10
    assert evenly_spaced_subset(images, 70) is images
    assert evenly_spaced_subset(images, 500) is images
