import math

import pytest
import torch

from dfs_rl.costs import relative_cost
from dfs_rl.evaluation.baselines.methods import (
    MethodResult,
    matched_cost_baselines,
    uniform_baselines,
)
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.metrics import paired_difference
from dfs_rl.evaluation.summary import EvaluationSummary, Subject, summarize
from dfs_rl.utils.config import config_from_dict, config_to_dict
from dfs_rl.utils.io import read_json, write_json

SUBJECT = Subject(
    identity="0123",
    dataset="made up",
    fingerprint="4567",
    split="test",
    class_names=("a", "b", "c", "d", "never seen"),
)


@pytest.fixture
def methods(backbone, evaluation_setup, val, test_set, look_gate):
    gate = evaluate_gate(backbone, look_gate(), test_set)
    uniform = uniform_baselines(backbone, test_set, selection=val)
    baselines = matched_cost_baselines(
        backbone,
        evaluation_setup,
        gate=gate,
        gate_selection=evaluate_gate(backbone, look_gate(), val),
        uniform=uniform,
    )
    return [
        MethodResult(key="gate", label="gate", role="gate", records=(gate,)),
        *uniform,
        *baselines,
    ]


def test_figures_come_from_the_records(backbone, methods):
    summary = summarize(methods, backbone.costs, SUBJECT)
    gate = methods[0].records[0]
    line = summary.method("gate")
    assert line.accuracy == pytest.approx(100 * gate.correct.double().mean().item())
    share = line.accuracy / 100
    assert line.accuracy_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 201))
    assert line.computation == pytest.approx(gate.computation(backbone.costs).mean().item())
    assert line.computation_dfs < line.computation
    assert line.bitops == pytest.approx(line.computation / 100 * 1000 * 1024)
    assert (line.n, line.draws, line.draws_deviation) == (201, 1, None)
    assert line.class_accuracy[4] is None
    assert summary.method("full").table == (32,) * 4
    assert summary.method("no such") is None
    assert summary.histogram[1] == pytest.approx(gate.histogram(3)[1].tolist())


def test_draws_are_averaged_and_their_spread_given(backbone, methods):
    line = summarize(methods, backbone.costs, SUBJECT).method("random")
    draws = [records.accuracy for records in methods[-2].records]
    mean = sum(draws) / 5
    assert line.draws == 5
    assert line.accuracy == pytest.approx(mean)
    deviation = math.sqrt(sum((draw - mean) ** 2 for draw in draws) / 4)
    assert line.draws_deviation == pytest.approx(deviation, rel=1e-5)


def test_comparisons_pair_the_gate_with_every_other_method(backbone, methods):
    summary = summarize(methods, backbone.costs, SUBJECT)
    assert [c.key for c in summary.comparisons] == [m.key for m in methods[1:]]
    full = summary.comparisons[2]
    expected = paired_difference(methods[0].records[0].correct, methods[3].records[0].correct)
    assert (full.difference, full.low, full.high) == pytest.approx(expected)
    # The fixture's gate looks at pixels that say nothing of what an image needs.
    assert summary.beyond_marginals is False
    assert any("not shown to adapt" in sentence for sentence in summary.verdict)


def test_shares_of_gate_and_fixed_parts(backbone, methods):
    shares = summarize(methods, backbone.costs, SUBJECT).shares
    assert [(share.name, share.macs, share.bits) for share in shares] == [
        ("gate", 5.0, 32),
        ("stem", 50.0, 8),
        ("head", 10.0, 32),
    ]
    percents = [share.percent for share in shares]
    assert percents == pytest.approx([0.5, 5 * relative_cost(8), 1.0])


def test_summary_round_trips_through_strict_json(backbone, methods, tmp_path):
    summary = summarize(methods, backbone.costs, SUBJECT)
    path = tmp_path / "summary.json"
    write_json(path, config_to_dict(summary))
    assert config_from_dict(read_json(path), EvaluationSummary, str(path)) == summary


def test_a_backbone_alone_gives_uniform_figures_and_no_verdict(backbone, test_set):
    summary = summarize(uniform_baselines(backbone, test_set), backbone.costs, SUBJECT)
    assert [method.key for method in summary.methods] == ["uniform_0", "uniform_2", "full"]
    assert summary.comparisons == summary.verdict == summary.histogram == ()
    assert summary.beyond_marginals is summary.search is None
    assert [share.name for share in summary.shares] == ["stem", "head"]


def test_a_gate_that_sees_the_answer_is_said_to_have_learned(backbone, test_set, methods):
    gate = methods[0].records[0]
    seer = type(gate)(
        name="seer",
        predictions=gate.labels,
        labels=gate.labels,
        options=gate.options,
        log_likelihood=torch.zeros_like(gate.log_likelihood),
        confidence=torch.ones_like(gate.confidence),
    )
    seeing = MethodResult(key="gate", label="gate", role="gate", records=(seer,))
    summary = summarize([seeing, *methods[1:]], backbone.costs, SUBJECT)
    assert summary.beyond_marginals is True
    assert any("It adapts to the image" in sentence for sentence in summary.verdict)
