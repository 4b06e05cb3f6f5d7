from copy import copy
from dataclasses import replace

import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.baselines import BASELINES, register_baseline, run_baselines
from dfs_rl.evaluation.baselines.methods import RANDOM_DRAWS, mode_table
from dfs_rl.evaluation.baselines.registry import MethodResult, uniform_baselines
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.pass_outputs import run_uniform
from dfs_rl.evaluation.rule_search import best_rule
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import RuleGate
from dfs_rl.utils.registry import Registry
from tests.evaluation.conftest import MixBackbone, make_setup
from tests.helpers.latencies import made_up_profile

MATCHED = ["static_table", "cascade", "mode_table", "random", "patterns"]


@pytest.fixture(scope="module")
def methods(look_baselines):
    return {method.key: method for method in look_baselines}


def test_mode_table_prefers_the_cheaper_of_equals():
    options = torch.tensor([[2, 0, 1], [2, 1, 0], [1, 1, 1], [2, 0, 0]])
    assert mode_table(options, MixBackbone((0, 2, 32)).costs) == (2, 0, 0)


def test_uniform_baselines_cover_the_bit_options(backbone, val):
    outputs = run_uniform(backbone, val)
    uniform = uniform_baselines(backbone.options, outputs, outputs)
    assert [method.key for method in uniform] == ["uniform_0", "uniform_2", "full"]
    assert [method.label for method in uniform] == ["skip all", "uniform 2 bit", "full precision"]
    assert [method.detail for method in uniform] == ["no gated layer runs", "", ""]
    costs = [method.records[0].computation(backbone.costs, "dfs").mean() for method in uniform]
    assert costs == pytest.approx([0.0, 100 * (2 / 32) ** 2, 100.0])
    plain = backbone.logits(val.images, (2,) * 4).argmax(dim=1)
    assert torch.equal(uniform[2].records[0].predictions, plain)


def test_matched_baselines_have_the_cost_of_the_gate(backbone, look_setup, methods):
    costs = backbone.costs
    assert list(methods) == ["uniform_0", "uniform_2", "full", *MATCHED, "oracle"]
    budget = look_setup.gate_selection.computation(costs).mean().item()
    static = methods["static_table"]
    assert static.search.budget == pytest.approx(1.05 * budget)
    assert static.records[0].computation(costs).max().item() <= 1.05 * budget
    # Chosen on val at val's cost, so only about the same on test.
    assert methods["cascade"].records[0].computation(costs).mean().item() <= budget * 1.15
    gated = look_setup.gate.computation(costs, "dfs").mean().item()
    for records in (*methods["random"].records, *methods["patterns"].records):
        assert records.computation(costs, "dfs").mean().item() == pytest.approx(gated)
        assert records.gate_macs == 0
    chosen_on = [methods[key].chosen_on for key in MATCHED]
    assert chosen_on == ["val", "val", "test", "test", "test"]


@pytest.mark.parametrize(("over", "fits"), [(1.04, True), (1.06, False)])
def test_searched_baselines_have_the_same_tolerance(look_setup, backbone, over, fits):
    """A gate costs a little less than uniform 2 bit: both baselines may use 2 bit, or neither."""
    skip, two, _ = look_setup.uniform
    cost = two.selection.computation(backbone.costs).mean().item()
    fixed = skip.selection.computation(backbone.costs).mean().item()
    macs = backbone.costs.total_macs * (cost / over - fixed) / 100
    gate, on_val = (replace(r, gate_macs=macs) for r in (skip.records[0], skip.selection))
    assert on_val.computation(backbone.costs).mean().item() == pytest.approx(cost / over)
    setup = replace(look_setup, gate=gate, gate_selection=on_val)
    for method in (m for key in ("static_table", "cascade") for m in BASELINES[key](setup)):
        spent = method.selection.computation(backbone.costs).mean().item()
        assert spent <= 1.05 * cost / over + 1e-9
        assert method.selection.accuracy >= two.selection.accuracy or not fits


def test_results_agree_with_their_parameters(backbone, test_set, look_setup, methods):
    mode, gate = methods["mode_table"], look_setup.gate
    assert mode.table == tuple(int(column.mode().values) for column in gate.options.T)
    alone = evaluate_static_table(backbone, test_set, mode.table, name="alone")
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


def test_baselines_run_on_the_original_backbone(backbone, look_setup):
    before = MixBackbone((0, 2, 32), seed=4)
    setup = replace(look_setup, before_cotraining=before)
    static, static_before, cascade_before = (
        *BASELINES["static_table"](setup),
        *BASELINES["static_table_before"](setup),
        *BASELINES["cascade_before"](setup),
    )
    assert (static_before.key, cascade_before.key) == ("static_table_before", "cascade_before")
    alone = evaluate_static_table(before, setup.reported, static_before.table, name="alone")
    assert torch.equal(static_before.records[0].predictions, alone.predictions)
    # Two networks with other weights cannot agree on every image.
    assert not torch.equal(alone.predictions, static.records[0].predictions)
    first = run_uniform(before, setup.reported).logits.argmax(dim=2)
    assert (first == cascade_before.records[0].predictions).any(dim=0).all()


def test_oracle_takes_the_cheapest_correct_option(look_setup, methods):
    records, uniform = methods["oracle"].records[0], look_setup.uniform
    for image in range(len(records)):
        right = [o for o, method in enumerate(uniform) if bool(method.records[0].correct[image])]
        assert records.options[image].tolist() == [min(right, default=0)] * 4
        assert bool(records.correct[image]) == bool(right)
    assert records.accuracy > max(method.records[0].accuracy for method in uniform)


def test_oracle_takes_the_fastest_of_measured_options(backbone, look_setup):
    """Fewer bits may take longer: here uniform 2 bit is slower than full precision."""
    times, network = {0: 0.1, 2: 3.0, 32: 1.0}, copy(backbone)
    profile = made_up_profile(backbone.costs, layer=lambda _, bits: times[bits])
    network.costs = replace(backbone.costs, cost_model="latency", profile=profile)
    (oracle,) = BASELINES["oracle"](replace(look_setup, backbone=network))
    chosen, uniform = oracle.records[0].options, look_setup.uniform
    for image, options in enumerate(chosen.tolist()):
        right = [o for o in (0, 2, 1) if bool(uniform[o].records[0].correct[image])]
        assert options == [(right or [0])[0]] * 4


def test_order_of_baselines_is_stable():
    assert list(BASELINES) == [
        *("uniform", "static_table", "cascade", "tuned_rule", "exits"),
        *("static_table_before", "cascade_before", "tuned_rule_before"),
        *("mode_table", "random", "patterns", "oracle"),
    ]


def test_registered_baselines_run_in_order(look_setup, monkeypatch):
    few = Registry("baseline", {"oracle": BASELINES["oracle"]})
    monkeypatch.setattr("dfs_rl.evaluation.baselines.registry.BASELINES", few)

    @register_baseline("twin")
    def twin(setup):
        yield MethodResult(key="twin", label="twin", records=(setup.gate,))

    assert [m.key for m in run_baselines(look_setup)] == ["oracle", "twin"]
    with pytest.raises(ConfigError, match="'twin' is already registered"):
        register_baseline("twin")(twin)


@pytest.mark.parametrize("key", ["gate", "oracle"])
def test_methods_have_keys_of_their_own(look_setup, monkeypatch, key):
    few = Registry("baseline", {"oracle": BASELINES["oracle"]})
    monkeypatch.setattr("dfs_rl.evaluation.baselines.registry.BASELINES", few)

    @register_baseline("cheapest")
    def cheapest(setup):
        yield replace(setup.uniform[0], key=key)

    with pytest.raises(ConfigError, match=f"'cheapest' yields a method with the key '{key}'"):
        run_baselines(look_setup)


def test_named_baselines_alone_run_and_must_apply(look_setup):
    shown = []
    setup = replace(look_setup, progress=shown.append)
    found = run_baselines(setup, ["oracle", "cascade"])
    assert [method.key for method in found] == ["cascade", "oracle"]
    with pytest.raises(ConfigError, match="baseline 'exits' does not apply"):
        run_baselines(setup, ["cascade", "exits"])
    assert shown == ["baseline cascade", "baseline oracle", "baseline cascade"]


def test_cascades_are_compared_with_their_marginals(backbone, val, test_set, methods):
    gate = methods["cascade"]
    setup = make_setup(backbone, test_set, val, gate.records[0], gate.selection)
    keys = [method.key for method in run_baselines(setup)]
    assert keys[3:] == ["static_table", "cascade", "random", "patterns", "oracle"]


def test_tuned_rule_has_the_passes_of_the_gate(backbone, look_setup):
    passes = PassSettings(limit=2, mirrored=True, answer="mean")
    setup = replace(look_setup, passes=passes)
    (tuned,) = BASELINES["tuned_rule"](setup)
    selection = setup.outputs("selection", mirrored=True)
    found = best_rule(selection, backbone.costs, setup.budget, passes)
    gate = RuleGate([found.rule], answer="mean", options=backbone.options)
    for records, images in ((tuned.records[0], setup.reported), (tuned.selection, setup.selection)):
        expected = evaluate_gate(backbone, gate, images)
        assert torch.equal(records.predictions, expected.predictions)
        spent = records.computation(backbone.costs)
        assert torch.equal(spent, expected.computation(backbone.costs))
    assert tuned.selection.computation(backbone.costs).mean().item() <= setup.budget + 1e-9
    assert tuned.detail == found.rule.description(backbone.options)
    for same in (PassSettings(), PassSettings(limit=2, answer="last")):  # no passes, or a cascade
        assert not list(BASELINES["tuned_rule"](replace(look_setup, passes=same)))
