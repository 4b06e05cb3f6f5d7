"""Cascades against rollouts of each image alone and against two whole passes."""

import math
from dataclasses import replace

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.pass_outputs import run_uniform
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.passes import confidence
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.rules import GainModel, Rule, RuleGate, RulePass, cascade
from tests.helpers.rules import confident_gains
from tests.helpers.toy_backbone import BITS, MACS, ToyBackbone, run_alone_with_exits, toy_images

OPTIONS = BitOptions(BITS)
FIRST, SECOND = (1, 0, 2, 1), (3, 3, 3, 2)
N = 40


def make(threshold, first=FIRST, second=SECOND):
    return cascade(first, second, threshold=threshold, options=OPTIONS)


def test_unsure_images_run_twice():
    backbone, images = ToyBackbone(), toy_images(N)
    alone = [
        [run_alone_with_exits(backbone, i, table) for i in images] for table in (FIRST, SECOND)
    ]
    threshold = confidence(torch.stack([one.logits for one in alone[0]])).median().item()
    for layer in backbone.layers:
        layer.seen.clear()
    logits, trace = GatedModel(backbone, make(threshold))(images)
    n_escalated = int(trace.n_passes.gt(1).sum())
    assert 0 < n_escalated < N
    assert [n for bits, n in backbone.layers[0].seen] == [N, n_escalated]
    for i, (first, second) in enumerate(zip(*alone, strict=True)):
        again = bool(first.logits.double().softmax(0).max() < threshold)
        answer = second if again else first
        assert bool(trace.n_passes[i] == 2) is again
        assert torch.equal(logits[i], answer.logits)
        assert trace.options[i].tolist() == answer.options
        macs = answer.macs + (first.macs if again else 0.0)
        assert trace.computation[i].item() == pytest.approx(100 * macs / sum(MACS))


@pytest.mark.parametrize(("threshold", "again"), [(0.0, 0), (1.5, N)])
def test_no_image_or_every_image_runs_twice(threshold, again):
    _, trace = GatedModel(ToyBackbone(), make(threshold))(toy_images(N))
    assert int(trace.n_passes.gt(1).sum()) == again


def test_records_equal_those_of_whole_passes():
    backbone = ToyBackbone()
    images = ImageSet(toy_images(N), torch.arange(N) % 3)
    outputs = run_uniform(backbone, images)
    threshold = outputs.probabilities[1].amax(dim=1).median().item()
    gate = make(threshold, (1,) * 4, (3,) * 4)
    expected = outputs.records(gate.rule, "last", name="whole")
    records = evaluate_gate(backbone, gate, images, batch_size=7)
    for field in ("predictions", "options", "log_likelihood", "confidence"):
        torch.testing.assert_close(getattr(records, field), getattr(expected, field))
    assert torch.equal(records.earlier.options, expected.earlier.options)
    assert torch.equal(records.earlier.ran, expected.earlier.ran)
    costs = backbone.costs
    assert torch.equal(records.computation(costs), expected.computation(costs))
    assert torch.equal(records.bitops(costs), expected.bitops(costs))


def test_description():
    assert make(0.7).description == "2-0-4-2 bit, then 8-8-8-4 bit below a confidence of 0.7"
    assert make(2.0, (1,) * 4, (3,) * 4).description == "2 bit, then 8 bit for all"
    assert make(0.0, (1,) * 4, (1,) * 4).rule.passes[0].options == (1,) * 4


def test_description_of_gains():
    passes = tuple(RulePass(options=(option,) * 4) for option in (1, 2, 3))
    rule = Rule(passes=passes, thresholds=(0.98, 2.0), gains=confident_gains(3))
    said = rule.description(OPTIONS)
    assert said == "2 bit, then 4 bit for a predicted gain above 2 points, then 8 bit for all"


def test_rules_stop_in_one_way():
    passes = tuple(RulePass(options=(option,) * 4) for option in (1, 2))
    one, other = confident_gains(3)
    with pytest.raises(ConfigError, match="2 models of gains and 1 thresholds"):
        Rule(passes=passes, thresholds=(0.5,), gains=(one, other))
    with pytest.raises(ConfigError, match=r"weights is .* allowed is a list of at least 6"):
        GainModel(weights=(1.0,), offsets=(0.0,))
    found = [Rule(passes=passes, thresholds=(0.5,), gains=gains) for gains in ((one,), ())]
    measured = BudgetConditioning(computations=(1.0, 2.0))
    with pytest.raises(ConfigError, match="some of the rules predict gains"):
        RuleGate(found, answer="mean", options=OPTIONS, budget_conditioning=measured)
    gate = RuleGate(found[:1], answer="mean", options=OPTIONS)
    GatedModel(ToyBackbone(), gate)
    for model in confident_gains(4):
        gate = RuleGate([replace(found[0], gains=(model,))], answer="mean", options=OPTIONS)
        with pytest.raises(CheckpointError, match="gains for 4 classes, but the backbone has 3"):
            GatedModel(ToyBackbone(), gate)


@pytest.mark.parametrize("gate", [TableGate(FIRST), make(0.9)])
def test_static_gates_need_no_features(gate, monkeypatch):
    monkeypatch.setattr(ToyBackbone, "feature", None)
    monkeypatch.setattr(ToyBackbone, "head", lambda self, hidden: hidden.mean(dim=(2, 3))[:, :3])
    assert len(rollout(ToyBackbone(), gate, toy_images(5)).logits) == 5


def test_errors():
    with pytest.raises(ConfigError, match=r"thresholds\[0\] is inf"):
        make(math.inf)
    with pytest.raises(ConfigError, match="is not budget-conditioned"):
        GatedModel(ToyBackbone(), make(0.7)).set_budget(50.0)
    with pytest.raises(ConfigError, match=r"max_accuracy_drop is 1, but .* not budget-conditioned"):
        GatedModel(ToyBackbone(), make(0.7)).set_max_accuracy_drop(1.0)
    with pytest.raises(CheckpointError, match=r"'cascade' chooses from \[0, 2, 4, 8\] bit"):
        GatedModel(ToyBackbone(bits=(0, 2, 4)), make(0.7))
    with pytest.raises(CheckpointError, match=r"is the table \[1, 0, 2\]"):
        GatedModel(ToyBackbone(), make(0.7, FIRST[:3], SECOND[:3]))


def test_descriptions_end_with_the_exit():
    options = BitOptions((0, 2, 32))
    passes = (RulePass(options=(1, 1, 3, 3)), RulePass(options=(2, 2, 2, 2), mirrored=True))
    rule = Rule(passes=passes, thresholds=(0.5,))
    expected = "2-2-exit bit, then 32 bit mirrored below a confidence of 0.5"
    assert rule.description(options) == expected
