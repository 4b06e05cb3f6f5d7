from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.evaluation.baselines.methods import (
    RANDOM_DRAWS,
    matched_cost_baselines,
    mode_table,
    oracle_baseline,
    shuffled_options,
    uniform_baselines,
)
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.metrics import option_histogram
from tests.evaluation.conftest import MixBackbone


def test_mode_table_takes_the_most_frequent_option_and_the_cheaper_of_equals():
    options = torch.tensor([[2, 0, 1], [2, 1, 0], [1, 1, 1], [2, 0, 0]])
    assert mode_table(options, MixBackbone((0, 2, 32)).costs) == (2, 0, 0)


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_shuffling_keeps_marginals_exactly(seed, n):
    generator = torch.Generator().manual_seed(seed)
    options = torch.randint(0, 4, (n, 3), generator=generator)
    dealt = shuffled_options(options, generator)
    assert torch.equal(option_histogram(dealt, 4), option_histogram(options, 4))


def test_shuffling_parts_options_from_images_and_layers_from_each_other():
    # Every layer agrees with the image's half; afterwards neither holds.
    options = torch.arange(2).repeat_interleave(2000)[:, None].expand(-1, 2).contiguous()
    dealt = shuffled_options(options, torch.Generator().manual_seed(0)).double()
    for first, second in ((dealt[:, 0], options[:, 0].double()), (dealt[:, 0], dealt[:, 1])):
        # Agreement of independent halves is one half, with a standard error of 0.8 %.
        assert (first == second).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_uniform_methods_cover_the_menu(backbone, val):
    methods = uniform_baselines(backbone, val)
    assert [method.key for method in methods] == ["uniform_0", "uniform_2", "full"]
    assert [method.label for method in methods] == ["skip all", "uniform 2 bit", "full precision"]
    costs = [method.records[0].computation(backbone.costs, "dfs").mean() for method in methods]
    assert costs == pytest.approx([0.0, 100 * (2 / 32) ** 2, 100.0])
    plain = backbone.logits(val.images, (2,) * 4).argmax(dim=1)
    assert torch.equal(methods[2].records[0].predictions, plain)


@pytest.fixture
def baselines(backbone, evaluation_setup, val, test_set, look_gate):
    gate = evaluate_gate(backbone, look_gate(), test_set)
    gate_selection = evaluate_gate(backbone, look_gate(), val)
    methods = matched_cost_baselines(
        backbone,
        evaluation_setup,
        gate=gate,
        gate_selection=gate_selection,
        uniform=uniform_baselines(backbone, test_set, selection=val),
    )
    return gate, gate_selection, {method.key: method for method in methods}


def test_rivals_keep_to_the_cost_of_the_gate(backbone, baselines):
    gate, gate_selection, methods = baselines
    costs = backbone.costs
    assert list(methods) == ["static_table", "cascade", "mode_table", "random", "patterns"]
    budget = gate_selection.computation(costs).mean().item()
    static = methods["static_table"]
    assert static.search.budget == pytest.approx(1.05 * budget)
    assert static.records[0].computation(costs).max().item() <= 1.05 * budget
    # Chosen on val at val's cost, so only about the same on test.
    assert methods["cascade"].records[0].computation(costs).mean().item() <= budget * 1.15
    gated = gate.computation(costs, "dfs").mean().item()
    for records in (*methods["random"].records, *methods["patterns"].records):
        assert records.computation(costs, "dfs").mean().item() == pytest.approx(gated)


@pytest.mark.parametrize(("over", "fits"), [(1.04, True), (1.06, False)])
def test_every_searched_baseline_has_the_same_room(
    backbone, evaluation_setup, val, test_set, over, fits
):
    """A gate that costs a little less than uniform 2 bit: either both may run at 2 bit, or neither."""
    uniform = uniform_baselines(backbone, test_set, selection=val)
    two = uniform[1]
    cost = two.selection.computation(backbone.costs).mean().item()
    fixed = uniform[0].selection.computation(backbone.costs).mean().item()
    macs = backbone.costs.total_macs * (cost / over - fixed) / 100
    skipping = [replace(r, gate_macs=macs) for r in (uniform[0].records[0], uniform[0].selection)]
    assert skipping[1].computation(backbone.costs).mean().item() == pytest.approx(cost / over)
    found = matched_cost_baselines(
        backbone, evaluation_setup, gate=skipping[0], gate_selection=skipping[1], uniform=uniform
    )
    cost_of = {m.key: m.selection.computation(backbone.costs).mean().item() for m in found[:2]}
    assert list(cost_of) == ["static_table", "cascade"]
    for key, method in zip(cost_of, found[:2], strict=True):
        assert cost_of[key] <= 1.05 * cost / over + 1e-9
        assert (method.selection.accuracy >= two.selection.accuracy) or not fits


def test_rivals_pay_for_no_gate_and_say_where_they_were_chosen(baselines):
    _, _, methods = baselines
    assert all(r.gate_macs == 0 for method in methods.values() for r in method.records)
    chosen = {key: method.chosen_on for key, method in methods.items()}
    assert chosen == {
        "static_table": "val",
        "cascade": "val",
        "mode_table": "test",
        "random": "test",
        "patterns": "test",
    }
    assert "bit, then" in methods["cascade"].detail


def test_rivals_are_what_they_are_called(backbone, test_set, baselines):
    gate, _, methods = baselines
    mode = methods["mode_table"]
    counted = tuple(int(column.mode().values) for column in gate.options.T)
    assert mode.table == counted
    alone = evaluate_static_table(backbone, test_set, counted, name="alone")
    assert torch.equal(mode.records[0].predictions, alone.predictions)
    draws = methods["random"].records
    assert len(draws) == RANDOM_DRAWS
    assert not torch.equal(draws[0].options, draws[1].options)
    for records in draws:
        assert torch.equal(records.histogram(3), gate.histogram(3))
        assert not torch.equal(records.options, gate.options)
    for records in methods["patterns"].records:
        assert sorted(records.options.tolist()) == sorted(gate.options.tolist())
        assert not torch.equal(records.options, gate.options)


def test_rivals_on_the_backbone_from_before_join_those_on_the_trained_one(
    backbone, evaluation_setup, look_gate
):
    gate = evaluate_gate(backbone, look_gate(), evaluation_setup.reported)
    before_cotraining = MixBackbone((0, 2, 32), seed=4)
    methods = matched_cost_baselines(
        backbone,
        evaluation_setup,
        gate=gate,
        gate_selection=evaluate_gate(backbone, look_gate(), evaluation_setup.selection),
        uniform=uniform_baselines(
            backbone, evaluation_setup.reported, selection=evaluation_setup.selection
        ),
        before_cotraining=before_cotraining,
    )
    found = {method.key: method for method in methods}
    assert list(found)[:4] == ["static_table", "cascade", "static_table_before", "cascade_before"]
    static = found["static_table_before"]
    alone = evaluate_static_table(
        before_cotraining, evaluation_setup.reported, static.table, name="alone"
    )
    assert torch.equal(static.records[0].predictions, alone.predictions)
    # Trained as they are on other weights, the two networks cannot agree on every image.
    assert not torch.equal(alone.predictions, found["static_table"].records[0].predictions)
    uniform = [
        method.records[0]
        for method in uniform_baselines(before_cotraining, evaluation_setup.reported)
    ]
    cascade = found["cascade_before"].records[0]
    first = torch.stack([records.predictions for records in uniform])
    assert (first == cascade.predictions).any(dim=0).all()


def test_the_oracle_takes_the_cheapest_option_that_is_right(backbone, test_set):
    uniform = uniform_baselines(backbone, test_set)
    records = oracle_baseline(uniform).records[0]
    for image in range(len(test_set)):
        right = [o for o, method in enumerate(uniform) if bool(method.records[0].correct[image])]
        assert records.options[image].tolist() == [min(right, default=0)] * 4
        assert bool(records.correct[image]) == bool(right)
    best = max(method.records[0].accuracy for method in uniform)
    assert records.accuracy > best
