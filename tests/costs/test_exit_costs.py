"""What exits cost: by hand, and against every way through a small network."""

import itertools
from dataclasses import replace

import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.errors import ConfigError

MACS = (100, 300, 200, 400)
LEAVE = 3


def table(bit_options=(0, 4, 32), after=(1, 3), head=16):
    return CostTable(
        options=BitOptions(bit_options),
        layer_macs=MACS,
        fixed=(
            FixedCost(name="stem", macs=64, bits=8),
            FixedCost(name="head", macs=head, bits=32, layer=len(MACS)),
        ),
        exits=tuple(ExitCost(after=a, macs=20 * (a + 1), bits=16) for a in after),
    )


def test_image_that_exits_skips_later_fixed_parts():
    parts = (
        FixedCost(name="stem", macs=64, bits=32),
        *(FixedCost(name="mandatory", macs=10 * 2**n, bits=32, layer=n) for n in range(4)),
        FixedCost(name="head", macs=16, bits=32, layer=4),
    )
    costs = replace(table(), fixed=parts)
    options = torch.tensor([[0, LEAVE, LEAVE, LEAVE], [0, 0, 0, LEAVE], [0, 0, 0, 0]])
    by_hand = [64 + 10 + 40 / 4, 64 + 10 + 20 + 40 + 80 / 4, 64 + 150 + 16]
    assert (costs.computation(options) * 10).tolist() == pytest.approx(by_hand)


def test_image_that_exits_costs_its_exit_alone():
    costs = table()
    options = torch.tensor([[2, LEAVE, LEAVE, LEAVE], [1, 2, 0, LEAVE], [1, 1, 1, 1]])
    stem, quarter, small = 64 / 16, 1 / 4, 1 / 64
    expected = [
        stem + 100 + 40 * quarter,
        stem + 100 * small + 300 + 80 * quarter,
        stem + 1000 * small + 16,
    ]
    assert costs.computation(options).tolist() == pytest.approx([e / 10 for e in expected])
    gated = [100, 100 * small + 300, 1000 * small]
    dfs = costs.computation(options, counting="dfs")
    assert dfs.tolist() == pytest.approx([g / 10 for g in gated])
    assert costs.bitops(options).tolist() == pytest.approx([e * 1024 for e in expected])
    gate = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with_gate = costs.computation(options, gate_macs=gate)
    assert with_gate.tolist() == pytest.approx(
        [(e + g) / 10 for e, g in zip(expected, gate.tolist(), strict=True)]
    )
    assert costs.n_layers_run(options).tolist() == [1, 3, 4]


def test_steps_add_up_to_the_whole():
    costs = table()
    actions = costs.action_costs()
    assert actions.shape == (4, 4)
    by_steps = actions[0, 1] + actions[1, 2] + actions[2, 0] + actions[3, LEAVE]
    whole = costs.fractions(torch.tensor([[1, 2, 0, LEAVE]]))
    assert float(by_steps) == pytest.approx(float(whole), abs=1e-15)
    # Where there is no exit, to leave is the cheapest option.
    assert torch.equal(actions[[0, 2], LEAVE], actions[[0, 2], 0])


@pytest.mark.parametrize("bit_options", [(0, 4, 32), (2, 4, 8)])
@pytest.mark.parametrize("after", [(), (0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("head", [0, 16, 90])
def test_the_cheapest_way_on_is_the_least_of_all_ways(bit_options, after, head):
    costs = table(bit_options, after, head)
    every = torch.tensor(list(itertools.product(range(costs.n_actions), repeat=4)))
    ways = costs.canonicalize(every)
    spent = costs.fractions(ways)
    assert float(costs.least_costs()[0]) == pytest.approx(float(spent.min()), abs=1e-15)
    assert float(costs.least_costs()[4]) == 0.0


def test_actions_are_closed_to_what_an_image_does():
    costs = table()
    asked = torch.tensor([[LEAVE, 1, LEAVE, 2], [LEAVE, LEAVE, 1, 2], [1, 2, 1, LEAVE]])
    done = [[0, 1, 0, 2], [0, LEAVE, LEAVE, LEAVE], [1, 2, 1, LEAVE]]
    assert costs.canonicalize(asked).tolist() == done
    assert costs.canonicalize(costs.canonicalize(asked)).tolist() == done


def test_a_network_without_exits_has_one_action_less():
    costs = table(after=())
    assert costs.n_actions == 3
    assert torch.equal(costs.action_costs(), costs.option_costs())
    assert table().n_actions == 4


@pytest.mark.parametrize("after", [(4,), (-1,), (2, 1), (1, 1)])
def test_exits_that_do_not_exist_are_refused(after):
    with pytest.raises(ConfigError, match="allowed are ascending numbers from 0 to 3"):
        table(after=after)
