"""Summary of an evaluation, and the per-image results stored next to it."""

import math
from dataclasses import replace

import pytest
import torch

from dfs_rl.costs import BitOptions, CostTable, ExitCost, FixedCost
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.baselines.registry import MethodResult
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.evaluation.summary import (
    EvaluationSummary,
    load_per_image_results,
    per_image_results_of,
    save_per_image_results,
    summarize,
)
from dfs_rl.evaluation.timing import timing_of
from dfs_rl.gating.passes import EarlierPasses
from dfs_rl.utils.checkpoint import save_tensors
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.io import read_json, write_json
from tests.evaluation.conftest import NAMES, MixBackbone
from tests.helpers.latencies import made_up_profile


@pytest.fixture(scope="module")
def methods(look_setup, look_baselines):
    records, selection = (look_setup.gate,), look_setup.gate_selection
    fields = {"key": "gate", "label": "gate", "role": "gate"}
    return [MethodResult(records=records, selection=selection, **fields), *look_baselines]


@pytest.fixture(scope="module")
def summary(backbone, methods):
    return summarize(methods, backbone.costs, **NAMES)


def test_figures_come_from_the_records(backbone, methods, summary):
    gate = methods[0].records[0]
    found = summary.by_key["gate"]
    assert found.accuracy == pytest.approx(100 * gate.correct.double().mean().item())
    share = found.accuracy / 100
    assert found.accuracy_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 201))
    assert found.computation == pytest.approx(gate.computation(backbone.costs).mean().item())
    assert found.computation_dfs < found.computation
    assert found.bitops == pytest.approx(found.computation / 100 * 1000 * 1024)
    assert (found.n, found.draws, found.draws_deviation) == (201, 1, None)
    assert found.class_accuracy[4] is None
    assert summary.by_key["full"].table == (32,) * 4
    assert summary.histogram[1] == pytest.approx(gate.histogram(3)[1].tolist())
    static = next(method for method in methods if method.key == "static_table")
    assert static.selection.accuracy == pytest.approx(summary.search.accuracy)


def test_draws_are_averaged(methods, summary):
    found = summary.by_key["random"]
    (random,) = (method for method in methods if method.key == "random")
    draws = [records.accuracy for records in random.records]
    mean = sum(draws) / 5
    assert found.draws == 5
    assert found.accuracy == pytest.approx(mean)
    deviation = math.sqrt(sum((draw - mean) ** 2 for draw in draws) / 4)
    assert found.draws_deviation == pytest.approx(deviation, rel=1e-5)


def test_comparisons_pair_gate_and_baselines(methods, summary):
    assert [c.key for c in summary.comparisons] == [m.key for m in methods[1:]]
    full = summary.comparisons[2]
    expected = paired_difference(methods[0].records[0].correct, methods[3].records[0].correct)
    assert (full.difference, full.low, full.high) == pytest.approx(expected)
    # The gate looks at pixels that say nothing of what an image needs.
    assert summary.beyond_marginals is False


def test_gate_that_sees_the_label_is_beyond_marginals(backbone, methods):
    gate, *baselines = methods
    seer = replace(gate.records[0], predictions=gate.records[0].labels)
    summary = summarize([replace(gate, records=(seer,)), *baselines], backbone.costs, **NAMES)
    assert summary.beyond_marginals is True


def test_shares_of_gate_and_fixed_parts(summary):
    assert [(share.name, share.macs, share.bits) for share in summary.shares] == [
        ("gate", 5.0, 32),
        ("stem", 50.0, 8),
        ("head", 10.0, 32),
    ]
    percents = [share.percent for share in summary.shares]
    assert percents == pytest.approx([0.5, 5 * (8 / 32) ** 2, 1.0])


def test_shares_count_the_parts_of_every_pass():
    costs = CostTable(
        options=BitOptions((0, 32)),
        layer_macs=(100,) * 4,
        fixed=(
            FixedCost(name="stem", macs=50, bits=32),
            FixedCost(name="mandatory", macs=20, bits=32, layer=2),
            FixedCost(name="head", macs=30, bits=32, layer=4),
        ),
        exits=(ExitCost(after=2, macs=40, bits=32),),
    )
    # Both images take the exit in their first pass, and the second one runs again to the head.
    exits, whole = [1, 1, 2, 2], [1, 1, 1, 1]
    earlier = EarlierPasses(
        options=torch.tensor([[[0, 0, 0, 0]], [exits]]),
        ran=torch.tensor([[False], [True]]),
        mirrored=torch.zeros(2, 1, dtype=torch.bool),
    )
    records = GateRecords(
        name="gate",
        predictions=torch.tensor([0, 1]),
        labels=torch.tensor([0, 1]),
        options=torch.tensor([exits, whole]),
        log_likelihood=torch.zeros(2, dtype=torch.float64),
        confidence=torch.ones(2, dtype=torch.float64),
        earlier=earlier,
    )
    gate = MethodResult(key="gate", label="gate", role="gate", records=(records,))
    summary = summarize([gate], costs, **NAMES)
    macs = {share.name: share.macs for share in summary.shares}
    assert macs == {"stem": 75.0, "mandatory": 10.0, "head": 15.0, "exits": 40.0}
    passes = records.pass_histograms(costs.n_actions).tolist()
    assert [[list(row) for row in each] for each in summary.pass_histograms] == passes
    assert [sum(each[0]) for each in passes] == [1.0, 0.5]
    layers = 100 * (200 + 200 + 400) / 2 / 400  # of three passes of two images, in percent
    outside = sum(share.percent for share in summary.shares)
    assert outside == pytest.approx(summary.methods[0].computation - layers)


@pytest.fixture(scope="module")
def measured(backbone):
    times = made_up_profile(backbone.costs, gate_macs=10.0)
    return backbone.costs.with_cost_model("latency", times)


def test_milliseconds_come_from_the_records(backbone, methods, measured):
    summary = summarize(methods, backbone.costs, measured=measured, **NAMES)
    for method in methods:
        times = [records.milliseconds(measured).mean().item() for records in method.records]
        assert summary.by_key[method.key].milliseconds == pytest.approx(sum(times) / len(times))
    # Stem and head take 0.5 ms each, as neither belongs to a layer, and layers 0.1 to 0.4 ms.
    assert summary.by_key["full"].milliseconds == pytest.approx(1.0 + 33 * 1.0)
    assert summary.timing.layer_milliseconds == pytest.approx((1.0, 3.0, 33.0))
    assert summary.timing.full_milliseconds == pytest.approx(33.0)
    assert f"{summary.timing.load}; {summary.timing.calls}" == "1 thread, batch size 1; 10"
    gate, full = summary.methods[0], summary.comparisons[2]
    assert full.relative_milliseconds == pytest.approx(gate.milliseconds / 34.0)
    assert "% of that of full precision" in summary.verdict[-2]
    assert "measured a gate of 10 MACs, and this one has 5" in summary.verdict[-1]
    near = replace(measured, profile=replace(measured.profile, gate_macs=7.0))
    alike = summarize(methods, backbone.costs, measured=near, **NAMES)
    assert "% of that of full precision" in alike.verdict[-1]


@pytest.mark.parametrize(("exit_", "saves"), [(0.9, True), (1.5, False)])
def test_exits_that_are_slower_save_nothing(exit_, saves):
    # After the third layer, the last one takes 0.4 * 3 = 1.2 ms at 2 bit.
    costs = MixBackbone((0, 2, 32), exits=(3,)).costs
    times = made_up_profile(costs, exit_=exit_)
    assert timing_of(costs.with_cost_model("latency", times)).exits_save is saves


def test_latency_in_percent_is_that_of_its_milliseconds(methods, measured):
    summary = summarize(methods[1:], measured, measured=measured, **NAMES)
    for method in summary.methods:
        assert method.milliseconds == pytest.approx(33.0 * method.computation / 100)


def test_an_exceeded_budget_is_told_in_its_unit(methods, measured):
    summary = summarize(methods, measured, measured=measured, budget=1.0, **NAMES)
    told = f"{summary.by_key['gate'].milliseconds:.3g} ms"
    assert told in summary.verdict[0]
    assert "budget of 0.33 ms (1 %)" in summary.verdict[0]


def test_summary_without_times_has_no_milliseconds(summary):
    assert summary.timing is None
    assert {method.milliseconds for method in summary.methods} == {None}
    assert {one.relative_milliseconds for one in summary.comparisons} == {None}


def test_summary_round_trips_through_json(backbone, methods, measured, tmp_path):
    summary = summarize(methods, backbone.costs, measured=measured, **NAMES)
    path = tmp_path / "summary.json"
    write_json(path, config_to_dict(summary))
    assert config_from_dict(read_json(path), EvaluationSummary, str(path)) == summary


def test_backbone_alone_has_no_verdict(backbone, look_setup):
    summary = summarize(look_setup.uniform, backbone.costs, **NAMES)
    assert [method.key for method in summary.methods] == ["uniform_0", "uniform_2", "full"]
    assert summary.comparisons == summary.verdict == summary.histogram == ()
    assert summary.beyond_marginals is summary.search is None
    assert [share.name for share in summary.shares] == ["stem", "head"]


def test_per_image_results_are_means_over_draws(backbone, methods, summary, measured, tmp_path):
    path = tmp_path / "results.safetensors"
    save_per_image_results(path, *per_image_results_of(methods, backbone.costs, measured))
    reported, selection = load_per_image_results(path)
    assert set(reported) == {method.key for method in methods}
    # Methods that can be deployed: all but mode table, shuffles and oracle.
    assert set(selection) == {m.key for m in methods if m.selection is not None}
    for method in methods:
        found, figures = reported[method.key], summary.by_key[method.key]
        assert 100 * found.correct.mean().item() == pytest.approx(figures.accuracy, rel=1e-5)
        assert found.computation.mean().item() == pytest.approx(figures.computation, rel=1e-5)
        if method.selection is not None:
            chosen = selection[method.key]
            assert torch.equal(chosen.correct, method.selection.correct.float())
            assert len(chosen.computation) == 157
            times = method.selection.milliseconds(measured)
            assert torch.equal(chosen.milliseconds, times.float())
    save_per_image_results(path, *per_image_results_of(methods, backbone.costs))
    assert load_per_image_results(path)[0]["gate"].milliseconds is None


def test_files_without_per_image_results_are_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="has no per-image results"):
        load_per_image_results(tmp_path / "x.safetensors")
