"""Leaving early: every image as if it walked alone, nothing run for those that have left, budgets by brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_rl.costs import BitOptions
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.gating.action_masks import action_masks, clamp_options, gated_budget
from dfs_rl.gating.base import RandomGate, TableGate
from dfs_rl.gating.early_exit import ActiveBatch
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.networks import ExitInfo, LSTMGate, MLPGate, exit_info
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import (
    BITS,
    CHANNELS,
    MACS,
    ToyBackbone,
    run_alone_with_exits,
    toy_images,
)

LEAVE = len(BITS)
places = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(sorted)
action_rows = st.lists(
    st.lists(st.integers(0, LEAVE), min_size=4, max_size=4), min_size=1, max_size=12
)


@torch.no_grad()
@settings(max_examples=80)
@given(rows=action_rows, after=places)
def test_a_batch_walks_as_each_of_its_images_alone(rows, after):
    backbone = ToyBackbone(exits=after)
    images, actions = toy_images(len(rows)), torch.tensor(rows)
    active = ActiveBatch(backbone, images)
    while active.unfinished:
        active.advance(active.gather(actions[:, active.state.layer]))
    logits, options, spent = active.outputs()[1:]
    alone = [run_alone_with_exits(backbone, i, row) for i, row in zip(images, rows, strict=True)]
    assert torch.equal(logits, torch.stack([one.logits for one in alone]))
    assert options.tolist() == [one.options for one in alone]
    assert torch.equal(options, backbone.costs.canonicalize(actions))
    assert spent.tolist() == pytest.approx(backbone.costs.fractions(options).tolist(), abs=1e-15)
    computation = backbone.costs.computation(options)
    assert computation.tolist() == pytest.approx([one.macs / 10 for one in alone])


@torch.no_grad()
def test_nothing_runs_for_images_that_have_left():
    backbone = ToyBackbone(exits=(1, 2))
    rows = [[3, LEAVE, 3, 3], [3, 3, LEAVE, 3], [3, LEAVE, 3, 3], [3, 3, 3, 3], [3, 3, LEAVE, 3]]
    actions = torch.tensor(rows)
    active = ActiveBatch(backbone, toy_images(5))
    while active.unfinished:
        active.advance(active.gather(actions[:, active.state.layer]))
    assert [layer.seen for layer in backbone.layers] == [[(8, 5)], [(8, 3)], [(8, 1)], [(8, 1)]]
    assert backbone.answered == [(1, 2), (2, 2)]


@torch.no_grad()
def test_a_walk_ends_when_all_have_left():
    backbone = ToyBackbone(exits=(2,))
    result = rollout(backbone, TableGate([1, 2, LEAVE, 3]), toy_images(6))
    assert result.options.tolist() == [[1, 2, LEAVE, LEAVE]] * 6
    assert [len(layer.seen) for layer in backbone.layers] == [1, 1, 0, 0]


def learned(kind, after):
    torch.manual_seed({MLPGate: 1, LSTMGate: 7}[kind])  # gates that do some of everything
    backbone = ToyBackbone(exits=after)
    gate = kind(CHANNELS, BitOptions(BITS), hidden=4, feature_macs=6.0, exits=exit_info(backbone))
    with torch.no_grad():
        for parameter in gate.parameters():  # chooses differently for different images
            parameter.mul_(4.0 if parameter.dim() > 1 else 0.0)
    return backbone, gate


@pytest.mark.parametrize("kind", [MLPGate, LSTMGate])
@pytest.mark.parametrize("budget", [None, 72.0])
def test_a_learned_gate_decides_the_same_in_any_batch(kind, budget):
    backbone, gate = learned(kind, (1, 2, 3))
    images = toy_images(40)
    together = rollout(backbone, gate, images, budget=budget)
    assert len(together.options.unique(dim=0)) > 2
    assert 0 < int((together.options == LEAVE).any(dim=1).sum()) < 40
    for i in range(40):
        alone = rollout(backbone, gate, images[i : i + 1], budget=budget)
        assert torch.equal(alone.options[0], together.options[i])
        assert torch.equal(alone.logits[0], together.logits[i])


@pytest.mark.parametrize("kind", [MLPGate, LSTMGate])
def test_a_gate_counts_for_the_layers_that_it_is_asked_about(kind):
    backbone, gate = learned(kind, (1, 2, 3))
    own, looks = gate.layer_macs, backbone.layer_feature_macs
    assert gate.own_macs == sum(own)
    taken = gate.macs_taken(torch.tensor([1, 3, 4]))
    by_hand = [
        sum(own[:2]) + sum(looks[:1]),  # asked about two layers; the exit's own head is the exit's
        sum(own[:4]) + sum(looks[:3]),
        sum(own) + sum(looks),
    ]
    assert taken.tolist() == pytest.approx(by_hand)
    assert gate.least_macs == pytest.approx(by_hand[0])
    trace = GatedModel(backbone, gate)(toy_images(9))[1]
    expected = backbone.costs.computation(
        trace.options, gate_macs=gate.macs_taken(backbone.costs.n_layers_run(trace.options))
    )
    assert torch.equal(trace.computation, expected)
    assert trace.bits.tolist() == [
        [BITS[o] if o < LEAVE else 0 for o in row] for row in trace.options.tolist()
    ]
    assert trace.n_layers_run.tolist() == [
        sum(o < LEAVE for o in row) for row in trace.options.tolist()
    ]


def test_to_leave_where_there_is_no_exit_is_the_cheapest_option_with_a_budget_and_without():
    backbone, gate = learned(MLPGate, (3,))
    with torch.no_grad():
        for network in gate.networks:
            network[2].weight.zero_()
            network[2].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]))
    for budget in (None, 50.0):
        result = rollout(backbone, gate, toy_images(3), budget=budget)
        assert result.options.tolist() == [[0, 0, 0, LEAVE]] * 3


@pytest.mark.parametrize("menu", [(0, 2, 4, 8), (2, 4, 8), (1, 32)])
@pytest.mark.parametrize("after", [(1,), (0, 2), (1, 2, 3)])
@pytest.mark.parametrize("budget", [2.7, 3.5, 8.0, 40.0])
@pytest.mark.parametrize("gate_macs", [0.0, 7.0])
def test_masks_agree_with_trying_every_completion(menu, after, budget, gate_macs):
    costs = ToyBackbone(menu, exits=after).costs
    leave = costs.exit_action
    every = costs.canonicalize(
        torch.tensor(list(itertools.product(range(costs.n_actions), repeat=4)))
    ).unique(dim=0)
    computation = costs.computation(every, gate_macs=gate_macs)
    within = every[computation <= budget + 1e-9]
    if len(within) == 0:
        with pytest.raises(ConfigError, match="budget"):
            gated_budget(costs, budget, gate_macs=gate_macs)
        return
    table = costs.action_costs()
    for layer in range(4):
        prefixes = every[:, :layer].unique(dim=0) if layer else every[:1, :0]
        for prefix in prefixes[(prefixes != leave).all(dim=1)]:
            spent = sum((table[i, int(o)] for i, o in enumerate(prefix)), torch.zeros(()).double())
            mask = action_masks(costs, layer, spent[None], budget, gate_macs=gate_macs)[0]
            follow = within[(within[:, :layer] == prefix).all(dim=1), layer].unique().tolist()
            if follow:
                assert np.flatnonzero(mask).tolist() == follow
            else:  # over it already: the action of the cheapest way on
                ways = every[(every[:, :layer] == prefix).all(dim=1)]
                least = int(ways[costs.fractions(ways).argmin(), layer])
                assert np.flatnonzero(mask).tolist() == [least]


def test_without_a_budget_leaving_is_allowed_where_there_is_an_exit():
    costs = ToyBackbone(exits=(1, 3)).costs
    spent = torch.zeros(2, dtype=torch.float64)
    allowed = [action_masks(costs, layer, spent, None)[0].tolist() for layer in range(4)]
    assert allowed == [[True] * 4 + [layer in (1, 3)] for layer in range(4)]


def test_choices_beyond_the_budget_are_lowered_and_leaving_is_kept_where_it_may_be():
    mask = torch.tensor(
        [
            [True, True, False, True],
            [True, True, False, False],
            [False, False, False, True],
            [False, False, False, True],
        ]
    )
    chosen = torch.tensor([3, 3, 3, 1])
    assert clamp_options(chosen, mask, exit_action=3).tolist() == [3, 0, 3, 3]
    assert clamp_options(torch.tensor([2, 2, 2, 2]), mask, exit_action=3).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("menu", [(0, 2, 4, 8), (2, 4, 8)])
def test_every_gate_keeps_to_a_budget(menu):
    backbone = ToyBackbone(menu, exits=(1, 2))
    n = backbone.costs.n_actions
    gate = RandomGate(torch.full((4, n), 1.0 / n), seed=1)
    free = backbone.costs.computation(rollout(backbone, gate, toy_images(64)).options)
    held = backbone.costs.computation(rollout(backbone, gate, toy_images(64), budget=3.1).options)
    assert free.max() > 3.1 >= held.max()


@pytest.mark.parametrize("kind", [MLPGate, LSTMGate])
def test_a_stored_gate_still_leaves(kind, tmp_path):
    backbone, gate = learned(kind, (1, 3))
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    assert (
        again.exits
        == gate.exits
        == ExitInfo(after=(1, 3), layer_feature_macs=backbone.layer_feature_macs)
    )
    images = toy_images(20)
    assert torch.equal(
        rollout(backbone, again, images).options, rollout(backbone, gate, images).options
    )
    with pytest.raises(CheckpointError, match=r"leaves after \[1, 3\] gated layers"):
        GatedModel(ToyBackbone(exits=(1, 2)), gate)


def test_a_stored_table_still_leaves(tmp_path):
    table = TableGate([1, LEAVE, 0, 0], options=BitOptions(BITS), exits=(1,))
    save_gate(table, tmp_path)
    assert load_gate(tmp_path).table == table.table
    with pytest.raises(ConfigError, match="allowed are 0 to 3"):
        TableGate([1, LEAVE, 0, 0], options=BitOptions(BITS))
    with pytest.raises(CheckpointError, match="from 0 to 3"):
        GatedModel(ToyBackbone(), TableGate([1, LEAVE, 0, 0]))


def test_a_gate_that_leaves_chooses_from_the_whole_menu():
    known = ExitInfo(after=(1,), layer_feature_macs=(0.0,) * len(MACS))
    with pytest.raises(ConfigError, match="chooses from the whole menu"):
        MLPGate(CHANNELS, BitOptions(BITS), choices=(0, 3), exits=known)
