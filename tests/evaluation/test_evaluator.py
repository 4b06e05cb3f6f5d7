import pytest
import torch

from dfs_rl.errors import ConfigError, DataError
from dfs_rl.evaluation.evaluator import evaluate_draws, evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.pass_outputs import run_uniform
from dfs_rl.evaluation.static_tables.scoring import score_static_tables
from tests.evaluation.conftest import LookGate, MixBackbone, make_images


def assert_same(first, second):
    for field in ("predictions", "labels", "options"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    for field in ("log_likelihood", "confidence"):
        torch.testing.assert_close(getattr(first, field), getattr(second, field))


def test_static_table_is_the_plain_forward_pass(backbone, val):
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


def test_gate_does_not_depend_on_the_batch(backbone, val):
    first = evaluate_gate(backbone, LookGate(), val, batch_size=40)
    assert_same(first, evaluate_gate(backbone, LookGate(), val, batch_size=7))
    assert (first.name, first.gate_macs) == ("look", 5.0)
    assert first.patterns > 3
    assert_same(first, *evaluate_draws(backbone, val, [first.options], name="replayed"))


def test_budget_bounds_every_image(backbone, val):
    free = evaluate_gate(backbone, LookGate(), val)
    bounded = evaluate_gate(backbone, LookGate(), val, budget=50.0)
    assert free.computation(backbone.costs).max() > 50.0
    assert bounded.computation(backbone.costs).max() <= 50.0


@pytest.mark.parametrize("exits", [(), (1, 3)])
def test_draws_match_each_image_and_share_prefixes(val, exits):
    backbone = MixBackbone((0, 2, 32), exits=exits)
    generator = torch.Generator().manual_seed(0)
    n_actions = backbone.costs.n_actions
    val = val.subset(torch.arange(60))
    draws = [torch.randint(0, n_actions, (len(val), 4), generator=generator) for _ in range(4)]
    draws.append(draws[0].clone())  # costs nothing more
    records = evaluate_draws(backbone, val, draws, name="given", batch_size=35)
    run = sum(layer.images_run for layer in backbone.layers)
    prefixes = set()
    for options, found in zip(draws, records, strict=True):
        canonical = backbone.costs.canonicalize(options)
        assert torch.equal(found.options, canonical)
        for i, image in enumerate(val.images):
            actions = canonical[i].tolist()
            logits = backbone.logits(image[None], actions)[0]
            assert int(found.predictions[i]) == int(logits.argmax())
            assert found.confidence[i].item() == pytest.approx(float(logits.softmax(0).max()))
            # Layers that are skipped or behind an exit run nothing.
            runs = [depth for depth, action in enumerate(actions) if action in (1, 2)]
            prefixes |= {(i, *actions[: depth + 1]) for depth in runs}
    assert run == len(prefixes)


def test_exit_before_the_head_for_all_images():
    backbone = MixBackbone((0, 2, 32), exits=(1, 3))
    images = make_images(backbone, 40, seed=5)
    options = torch.full((40, 4), 3)
    (records,) = evaluate_draws(backbone, images, [options], name="leave")
    expected = backbone.logits(images.images, (0, 3, 3, 3)).argmax(dim=1)
    assert torch.equal(records.predictions, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), r"shape \[3, 4\]; allowed is \[157, 4\]"),
        (torch.zeros(157, 3, dtype=torch.int64), r"shape \[157, 3\]"),
        (torch.full((157, 4), 32), "between 32 and 32; allowed are indices from 0 to 2"),
        (torch.full((157, 4), -1), "between -1 and -1"),
    ],
)
def test_invalid_options_are_refused(backbone, val, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_draws(backbone, val, [options], name="given")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "run",
    [
        lambda backbone, images: evaluate_gate(backbone, LookGate(), images),
        lambda backbone, images: evaluate_static_table(backbone, images, (2,) * 4, name="full"),
        lambda backbone, images: run_uniform(backbone, images),
        lambda backbone, images: score_static_tables(backbone, images, [(2,) * 4]),
    ],
)
def test_image_without_an_answer_does_not_count_as_the_first_class(val, run, value):
    class Undecided(MixBackbone):
        def head(self, hidden):
            logits = super().head(hidden)
            logits[3, 1] = value
            return logits

    with pytest.raises(DataError, match="NaN or infinite for 1 of a batch of 60 images"):
        run(Undecided((0, 2, 32)), val.subset(torch.arange(60)))
