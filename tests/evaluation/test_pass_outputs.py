from dataclasses import replace

import pytest
import torch

from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.pass_outputs import next_answer, rule_settings, run_settings, run_uniform
from dfs_rl.evaluation.static_tables.shortened import shortened_tables
from dfs_rl.gating.passes import PassHistory, PassSettings
from dfs_rl.gating.rules import Rule, RuleGate
from tests.evaluation.conftest import IMAGES, NETWORK, PASSES
from tests.helpers.rules import confident_gains

ANSWERS = ("mean", "last", "surest")


def test_settings_run_whole_networks():
    outputs = run_settings(NETWORK, IMAGES, PASSES, batch_size=30)
    for each, logits in zip(PASSES, outputs.logits, strict=True):
        images = IMAGES.images.flip(3) if each.mirrored else IMAGES.images
        torch.testing.assert_close(logits, NETWORK.logits(images, each.options).float())
    costs = NETWORK.costs.computation(torch.tensor([each.options for each in PASSES]))
    assert torch.equal(outputs.computations(NETWORK.costs), costs)


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_equal_those_of_episodes(answer):
    logits = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)) * 3
    settings = PassSettings(limit=3, answer=answer)
    history = PassHistory(settings, NETWORK, 50, device=torch.device("cpu"))
    rows, options = torch.arange(50), torch.zeros(50, 4, dtype=torch.int64)
    answers = logits[0].double().softmax(dim=1)
    for finished, latest in enumerate(logits):
        if finished:
            answers = next_answer(answers, latest.double().softmax(dim=1), finished, answer)
        history.finish(rows, latest, options, torch.zeros(50).double())
        expected = history.answer(rows).double().softmax(dim=1)
        torch.testing.assert_close(answers, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gains", [(), confident_gains(NETWORK.n_classes)])
@pytest.mark.parametrize("answer", ANSWERS)
def test_records_equal_those_of_the_gate(answer, gains):
    outputs = run_settings(NETWORK, IMAGES, PASSES)
    rule = Rule(passes=PASSES, thresholds=(0.9, 0.75), gains=gains)
    gate = RuleGate([rule], answer=answer, options=NETWORK.options, exits=(2,))
    expected = evaluate_gate(NETWORK, gate, IMAGES, batch_size=20)
    records = outputs.records(rule, answer, name="tabulated")
    assert set(expected.earlier.n_passes.tolist()) == {1, 2, 3}
    for field in ("predictions", "labels", "options", "log_likelihood", "confidence"):
        torch.testing.assert_close(
            getattr(records, field), getattr(expected, field), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(records.earlier.options, expected.earlier.options)
    assert torch.equal(records.earlier.ran, expected.earlier.ran)
    costs = NETWORK.costs
    assert torch.equal(records.computation(costs), expected.computation(costs))


def test_settings_of_rules_begin_with_uniform_ones():
    settings = rule_settings(NETWORK, IMAGES, mirrored=True)
    plain, mirrored = settings[: len(settings) // 2], settings[len(settings) // 2 :]
    assert [each.options for each in plain[:3]] == [(o,) * 4 for o in range(3)]
    assert [each.options for each in plain[3:]] == shortened_tables(NETWORK, IMAGES) != []
    assert mirrored == [replace(each, mirrored=True) for each in plain]
    assert rule_settings(NETWORK, IMAGES, mirrored=False) == plain


def test_uniform_settings_run_each_option():
    outputs = run_uniform(NETWORK, IMAGES)
    assert [each.options for each in outputs.settings] == [(o,) * 4 for o in range(3)]
    assert not any(each.mirrored for each in outputs.settings)
    both = outputs.with_images(outputs)
    assert len(both) == 2 * len(IMAGES)
    assert torch.equal(both.accuracies, outputs.accuracies)
