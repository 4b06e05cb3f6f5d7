import pytest
import torch

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.evaluator import (
    evaluate_draws,
    evaluate_gate,
    evaluate_options,
    evaluate_static_table,
)
from dfs_rl.evaluation.static_tables.scoring import score_static_tables


def assert_same(first, second):
    for field in ("predictions", "labels", "options"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    for field in ("log_likelihood", "confidence"):
        torch.testing.assert_close(getattr(first, field), getattr(second, field))


def test_a_table_is_the_plain_forward_pass(backbone, val):
    table = (2, 0, 1, 2)
    records = evaluate_static_table(backbone, val, table, name="table", batch_size=50)
    logits = backbone.logits(val.images, table)
    probabilities = logits.softmax(dim=1)
    assert torch.equal(records.predictions, logits.argmax(dim=1))
    torch.testing.assert_close(records.confidence, probabilities.amax(dim=1))
    picked = probabilities[torch.arange(len(val)), val.labels]
    torch.testing.assert_close(records.log_likelihood, picked.log())
    assert records.options.tolist() == [list(table)] * len(val)
    assert records.gate_macs == 0.0


def test_every_image_runs_at_its_own_options(backbone, val):
    options = torch.randint(0, 3, (len(val), 4), generator=torch.Generator().manual_seed(0))
    records = evaluate_options(backbone, val, options, name="given", batch_size=64)
    alone = [
        int(backbone.logits(image[None], row).argmax())
        for image, row in zip(val.images, options.tolist(), strict=True)
    ]
    assert records.predictions.tolist() == alone


def test_a_gate_repeats_and_does_not_depend_on_the_batch(backbone, val, look_gate):
    first = evaluate_gate(backbone, look_gate(), val, batch_size=40)
    again = evaluate_gate(backbone, look_gate(), val, batch_size=7)
    assert_same(first, again)
    assert first.name == "look"
    assert first.gate_macs == 5.0
    assert first.patterns > 3
    assert_same(first, evaluate_options(backbone, val, first.options, name="replayed"))


def test_a_budget_holds_for_every_image(backbone, val, look_gate):
    free = evaluate_gate(backbone, look_gate(), val)
    held = evaluate_gate(backbone, look_gate(), val, budget=50.0)
    assert free.computation(backbone.costs).max() > 50.0
    assert held.computation(backbone.costs).max() <= 50.0


def test_draws_come_out_as_each_image_alone_and_share_their_beginnings(backbone, val):
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(0, 3, (len(val), 4), generator=generator) for _ in range(4)]
    draws.append(draws[0].clone())  # costs nothing more
    before = sum(layer.images_run for layer in backbone.layers)
    records = evaluate_draws(backbone, val, draws, name="given", batch_size=60)
    run = sum(layer.images_run for layer in backbone.layers) - before
    for options, made in zip(draws, records, strict=True):
        for i, image in enumerate(val.images):
            logits = backbone.logits(image[None], options[i].tolist())[0]
            assert int(made.predictions[i]) == int(logits.argmax())
            assert made.confidence[i].item() == pytest.approx(float(logits.softmax(0).max()))
        assert torch.equal(made.options, options)
    beginnings = {
        (i, *options[i, : depth + 1].tolist())
        for options in draws
        for i in range(len(val))
        for depth in range(4)
        if options[i, depth] != 0  # a skipped layer runs nothing
    }
    assert run == len(beginnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), "3 x 4 entries"),
        (torch.zeros(157, 3, dtype=torch.int64), "157 x 3 entries"),
        (torch.full((157, 4), 32), "go from 32 to 32; allowed are indices from 0 to"),
        (torch.full((157, 4), -1), "go from -1 to -1"),
    ],
)
def test_options_that_are_none_are_refused(backbone, val, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_options(backbone, val, options, name="given")


def test_tables_score_as_if_run_one_by_one_and_share_their_beginnings(backbone, val):
    tables = [(0, 1, 2, 0), (0, 1, 2, 1), (0, 1, 2, 2), (0, 2, 0, 0), (0, 1, 2, 1)]
    before = sum(layer.images_run for layer in backbone.layers)
    scores = score_static_tables(backbone, val, tables, batch_size=60)
    run = sum(layer.images_run for layer in backbone.layers) - before
    assert run == len(val) * (1 + 2 + 2 + 4)  # distinct beginnings of length 1 to 4
    for table, score in zip(tables, scores, strict=True):
        alone = evaluate_static_table(backbone, val, table, name="alone")
        assert score.correct == int(alone.correct.sum())
        assert score.log_likelihood == pytest.approx(alone.log_likelihood.mean().item())
