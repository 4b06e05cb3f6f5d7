import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.costs import BitOptions, CostTable, FixedCost
from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks, clamp_options, gated_budget
from tests.helpers.toy_backbone import ToyBackbone

budgets = st.floats(0.1, 10.0)
menus = st.sampled_from([(0, 2, 4, 8), (2, 3, 4), (1, 8, 32)])


def table_of(menu):
    return CostTable(
        options=BitOptions(menu),
        layer_macs=(100, 300, 200, 400),
        fixed=(FixedCost(name="stem", macs=16, bits=8),),
    )


@given(
    menu=menus,
    budget=budgets,
    prefix=st.lists(st.integers(0, 2), max_size=3),
    gate_macs=st.sampled_from([0.0, 7.0, 30.0]),
)
def test_masks_agree_with_trying_every_completion(menu, budget, prefix, gate_macs):
    costs = table_of(menu)
    layer = len(prefix)
    done = sum(float(costs.option_costs()[i, o]) for i, o in enumerate(prefix))
    reachable = {
        option: any(
            float(costs.computation(torch.tensor([[*prefix, option, *rest]]), gate_macs=gate_macs))
            <= budget + 1e-9
            for rest in itertools.product(range(len(menu)), repeat=3 - layer)
        )
        for option in range(len(menu))
    }
    cheapest = float(costs.computation(torch.tensor([[0, 0, 0, 0]]), gate_macs=gate_macs))
    spent = torch.tensor([done], dtype=torch.float64)
    if cheapest > budget:
        with pytest.raises(ConfigError, match="budget"):
            action_masks(costs, layer, spent, budget, gate_macs=gate_macs)
        return
    mask = action_masks(costs, layer, spent, budget, gate_macs=gate_macs)[0].tolist()
    reachable[0] = True
    assert mask == list(reachable.values())


def test_without_a_budget_everything_is_allowed():
    mask = action_masks(table_of((0, 2, 4)), 1, torch.zeros(5, dtype=torch.float64), None)
    assert mask.shape == (5, 3)
    assert mask.all()


def test_a_budget_of_exactly_one_uniform_setting_allows_it_everywhere():
    backbone = ToyBackbone()
    uniform = torch.full((1, 4), 2)
    budget = float(backbone.costs.computation(uniform))
    spent = torch.zeros(1, dtype=torch.float64)
    for layer in range(4):
        assert action_masks(backbone.costs, layer, spent, budget)[0, 2]
        spent = spent + backbone.costs.option_costs()[layer, 2]
    assert float(spent) == pytest.approx(gated_budget(backbone.costs, budget))


def test_the_gate_counts_where_it_is_known():
    costs = table_of((2, 4))
    budget = float(costs.computation(torch.zeros(1, 4, dtype=torch.int64)))
    assert gated_budget(costs, budget) == pytest.approx((2 / 32) ** 2)
    with pytest.raises(ConfigError, match=r"comes to 0\.890625 %"):
        gated_budget(costs, budget, gate_macs=4.0)


def test_a_choice_beyond_the_budget_is_lowered_to_the_dearest_within():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    assert clamp_options(torch.tensor([2, 2, 2]), mask).tolist() == [1, 0, 2]
    assert clamp_options(torch.tensor([0, 0, 1]), mask).tolist() == [0, 0, 1]
