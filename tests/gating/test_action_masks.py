"""Masks and budgets against trying every completion of an episode."""

import itertools

import numpy as np
import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.gating.action_masks import action_masks, clamp_options, gated_budget
from tests.helpers.toy_backbone import ToyBackbone


@pytest.mark.parametrize("bits", [(0, 2, 4, 8), (2, 4, 8), (1, 32)])
@pytest.mark.parametrize("after", [(), (1,), (0, 2), (1, 2, 3)])
@pytest.mark.parametrize("budget", [2.7, 3.5, 8.0, 40.0])
@pytest.mark.parametrize("gate_macs", [0.0, 7.0])
def test_masks_allow_what_some_completion_allows(bits, after, budget, gate_macs):
    costs = ToyBackbone(bits, exits=after).costs
    actions = itertools.product(range(costs.n_actions), repeat=4)
    every = costs.canonicalize(torch.tensor(list(actions))).unique(dim=0)
    within = every[costs.computation(every, gate_macs=gate_macs) <= budget + 1e-9]
    if len(within) == 0:
        with pytest.raises(ConfigError, match=f"budget is {budget} %, too little"):
            gated_budget(costs, budget, gate_macs=gate_macs)
        return
    action_costs = costs.action_costs()
    for layer in range(4):
        prefixes = every[:, :layer].unique(dim=0) if layer else every[:1, :0]
        for prefix in prefixes[(prefixes != costs.exit_action).all(dim=1)]:
            spent = sum((action_costs[i, int(o)] for i, o in enumerate(prefix)), torch.zeros(()))
            mask = action_masks(costs, layer, spent.double()[None], budget, gate_macs=gate_macs)[0]
            expected = within[(within[:, :layer] == prefix).all(dim=1), layer].unique().tolist()
            if not expected:  # over the budget already: the cheapest completion
                completions = every[(every[:, :layer] == prefix).all(dim=1)]
                expected = [int(completions[costs.fractions(completions).argmin(), layer])]
            assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize("option", [1, 2, 3])
def test_budget_of_a_uniform_option_allows_it(option):
    costs = ToyBackbone((0, 3, 6, 7)).costs
    budget = float(costs.computation(torch.full((1, 4), option)))
    spent = torch.zeros(1, dtype=torch.float64)
    for layer in range(4):
        assert action_masks(costs, layer, spent, budget)[0, option]
        spent = spent + costs.option_costs()[layer, option]
    assert float(spent) == pytest.approx(gated_budget(costs, budget))


def test_all_actions_are_allowed_without_a_budget():
    spent = torch.zeros(2, dtype=torch.float64)
    costs = ToyBackbone(exits=(1, 3)).costs
    for layer in range(4):
        allowed = action_masks(costs, layer, spent, None)
        assert allowed.tolist() == [[True] * 4 + [layer in (1, 3)]] * 2


@pytest.mark.parametrize(
    ("actions", "mask", "exit_action", "clamped"),
    [
        ([2, 2, 2], ["110", "100", "111"], None, [1, 0, 2]),
        ([0, 0, 1], ["110", "100", "111"], None, [0, 0, 1]),
        ([3, 3, 3, 1], ["1101", "1100", "0001", "0001"], 3, [3, 0, 3, 3]),
        ([2, 2, 2, 2], ["1101", "1100", "0001", "0001"], 3, [1, 1, 3, 3]),
        ([0, 1, 2, 0], ["011", "101", "010", "001"], None, [1, 0, 1, 2]),  # of measured costs
    ],
)
def test_clamp_options(actions, mask, exit_action, clamped):
    allowed = torch.tensor([[bit == "1" for bit in row] for row in mask])
    assert (
        clamp_options(torch.tensor(actions), allowed, exit_action=exit_action).tolist() == clamped
    )
