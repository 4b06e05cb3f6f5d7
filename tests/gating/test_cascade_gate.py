"""A cascade as a gate, against walks of each image by itself and against the rule that evaluation applies to whole passes."""

import json
import math

import pytest
import torch

from dfs_rl.costs import BitOptions
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluation.baselines.cascade import Cascade, run_cascade
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.gating.base import Gate, TableGate
from dfs_rl.gating.cascade import CascadeGate, confidence
from dfs_rl.gating.model import GatedModel
from dfs_rl.gating.rollout import rollout
from dfs_rl.gating.storage import load_gate, save_gate
from tests.helpers.toy_backbone import BITS, ToyBackbone, run_alone_with_exits, toy_images

MENU = BitOptions(BITS)
FIRST, SECOND = (1, 0, 2, 1), (3, 3, 3, 2)
N = 40


def median_confidence(backbone, images):
    """A threshold that half of the images stay below."""
    alone = [run_alone_with_exits(backbone, image, FIRST).logits for image in images]
    return confidence(torch.stack(alone)).median().item()


def made(threshold):
    return CascadeGate(FIRST, SECOND, threshold=threshold, options=MENU)


def test_the_unsure_run_again_and_pay_for_both_passes():
    backbone, images = ToyBackbone(), toy_images(N)
    threshold = median_confidence(backbone, images)
    logits, trace = GatedModel(backbone, made(threshold))(images)
    assert 0 < int(trace.escalated.sum()) < N
    for i, image in enumerate(images):
        first = run_alone_with_exits(backbone, image, FIRST)
        again = bool(first.logits.double().softmax(0).max() < threshold)
        answer = run_alone_with_exits(backbone, image, SECOND) if again else first
        assert bool(trace.escalated[i]) is again
        assert torch.equal(logits[i], answer.logits)
        assert trace.options[i].tolist() == answer.options
        macs = answer.macs + (first.macs if again else 0.0)
        assert trace.computation[i].item() == pytest.approx(100 * macs / sum((100, 300, 200, 400)))


def test_only_the_unsure_are_run_again():
    backbone, images = ToyBackbone(), toy_images(N)
    gate = made(median_confidence(backbone, images))
    escalated = rollout(backbone, gate, images).first_pass.escalated
    samples = [n for bits, n in backbone.layers[0].seen[-2:]]
    assert samples == [N, int(escalated.sum())]


@pytest.mark.parametrize(("threshold", "again"), [(0.0, 0), (1.5, N)])
def test_none_or_all_run_again_at_the_ends(threshold, again):
    _, trace = GatedModel(ToyBackbone(), made(threshold))(toy_images(N))
    assert int(trace.escalated.sum()) == again


def test_it_does_what_evaluation_makes_of_two_whole_passes():
    backbone = ToyBackbone()
    images = ImageSet(toy_images(N), torch.arange(N) % 3)
    uniform = [
        evaluate_static_table(backbone, images, (o,) * 4, name=str(o)) for o in range(len(BITS))
    ]
    threshold = uniform[1].confidence.median().item()
    expected = run_cascade(uniform, Cascade(1, 3, threshold))
    gate = CascadeGate((1,) * 4, (3,) * 4, threshold=threshold, options=MENU)
    records = evaluate_gate(backbone, gate, images, batch_size=7)
    for field in ("predictions", "options", "log_likelihood", "confidence"):
        assert torch.equal(getattr(records, field), getattr(expected, field)), field
    assert torch.equal(records.first_pass.options, expected.first_pass.options)
    assert torch.equal(records.first_pass.escalated, expected.first_pass.escalated)
    costs = backbone.costs
    assert torch.equal(records.computation(costs), expected.computation(costs))
    assert torch.equal(records.bitops(costs), expected.bitops(costs))


def test_it_says_what_it_does():
    assert made(0.7).description == "2-0-4-2 bit, then 8-8-8-4 bit below a confidence of 0.7"
    alone = CascadeGate((1,) * 4, (3,) * 4, threshold=0.0, options=MENU)
    assert alone.description == "2 bit for all"


def test_tables_and_cascades_do_not_pay_for_a_look(monkeypatch):
    backbone = ToyBackbone()
    monkeypatch.setattr(ToyBackbone, "feature", None)  # the head of this network uses it as well
    monkeypatch.setattr(ToyBackbone, "head", lambda self, hidden: hidden.mean(dim=(2, 3)))
    for gate in (TableGate(FIRST), made(0.9)):
        assert len(rollout(backbone, gate, toy_images(5)).logits) == 5


def test_it_satisfies_the_protocol_and_comes_back_the_same(tmp_path):
    gate = made(0.7)
    assert isinstance(gate, Gate)
    save_gate(gate, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]
    again = load_gate(tmp_path)
    assert isinstance(again, CascadeGate)
    assert (again.first.table, again.second.table, again.threshold) == (FIRST, SECOND, 0.7)
    assert (again.options, again.name) == (MENU, "cascade")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": -0.1},
        {"threshold": "0.7"},
        {"first": [1, 0, 2]},
        {"second": [3, 3, 3, 4]},
        {"second": [3, 3, True, 2]},
        {"bits": [8, 2]},
        {"kind": "table"},
    ],
)
def test_a_changed_description_is_refused(tmp_path, change):
    save_gate(made(0.7), tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=r"gate\.json"):
        load_gate(tmp_path)


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="threshold is inf"):
        made(math.inf)
    with pytest.raises(ConfigError, match=r"is a cascade, which runs some images twice"):
        rollout(ToyBackbone(), made(0.7), toy_images(2), budget=50.0)
    with pytest.raises(ConfigError, match="cannot be turned to another"):
        GatedModel(ToyBackbone(), made(0.7)).set_budget(50.0)
    with pytest.raises(CheckpointError, match=r"'cascade' chooses from \[0, 2, 4, 8\] bit"):
        GatedModel(ToyBackbone(bits=(0, 2, 4)), made(0.7))
    short = CascadeGate(FIRST[:3], SECOND[:3], threshold=0.7, options=MENU)
    with pytest.raises(CheckpointError, match=r"is the table \[1, 0, 2\]"):
        GatedModel(ToyBackbone(), short)
