"""Baselines on a network with exits."""

import itertools

import pytest
import torch

from dfs_rl.evaluation.baselines import run_baselines
from dfs_rl.evaluation.baselines.early_exit import (
    ExitRule,
    apply_exit_rule,
    choose_exit_rule,
    run_exits,
)
from dfs_rl.evaluation.baselines.methods import mode_table
from dfs_rl.evaluation.baselines.registry import MethodResult
from dfs_rl.evaluation.evaluator import evaluate_draws, evaluate_gate, evaluate_static_table
from dfs_rl.evaluation.static_tables import SearchConfig
from dfs_rl.evaluation.static_tables.scoring import score_static_tables
from dfs_rl.evaluation.static_tables.search import search_static_table
from dfs_rl.evaluation.summary import summarize
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.reporting.figures import options_plot
from dfs_rl.reporting.tables import summary_text
from tests.evaluation.conftest import NAMES, MixBackbone, make_images, make_setup

AFTER = (1, 3)
EXIT = 3


class SureGate:
    """Gate that exits after one layer where the first feature is positive."""

    name, macs = "sure", 8.0

    def reset(self, batch_size):
        pass

    def decide(self, features, layer, context):
        leaves = (features[:, 0] > 0) & (layer == 1)
        return torch.where(leaves, EXIT, torch.full((len(features),), 2))


@pytest.fixture(scope="module")
def network():
    return MixBackbone((0, 2, 32), exits=AFTER)


@pytest.fixture(scope="module")
def images(network):
    return make_images(network, 90, seed=5)


@pytest.fixture(scope="module")
def passes(network, images):
    return run_exits(network, images, batch_size=32)


def run_by_hand(network, images, rule):
    """Return prediction, number of layers, and MACs as at 32 bit of each image in a plain loop."""
    results = []
    for image in images.images:
        hidden, macs, bits = network.stem(image[None]), 50 / 16, network.options[rule.option]
        for layer in range(4):
            if layer in AFTER and AFTER.index(layer) >= rule.first:
                macs += (20 + layer) / 16
                logits = network.answer(hidden, layer)
                if float(logits.softmax(dim=1).max()) >= rule.threshold:
                    results.append((int(logits.argmax()), layer, macs))
                    break
            macs += network.costs.layer_macs[layer] * (bits / 32) ** 2
            hidden = network.layers[layer](hidden, bits)
        else:
            results.append((int(network.head(hidden).argmax()), 4, macs))
    return results


@pytest.mark.parametrize("rule", [(1, 0, 0.6), (2, 1, 0.9), (2, 0, 0.5), (0, 2, 0.3), (2, 0, 2.0)])
def test_images_exit_where_an_exit_is_confident(network, images, passes, rule):
    rule = ExitRule(*rule)
    records = apply_exit_rule(passes, rule, network.costs)
    results = run_by_hand(network, images, rule)
    predictions, n_layers, macs = (list(values) for values in zip(*results, strict=True))
    assert records.predictions.tolist() == predictions
    assert network.costs.n_layers_run(records.options).tolist() == n_layers
    # The head of this network is not spared by exits.
    expected = [(each + 10) / 10 for each in macs]
    assert records.computation(network.costs).tolist() == pytest.approx(expected)
    share = sum(n < 4 for n in n_layers) / len(results)
    assert sum(records.exit_shares(network.costs)) == pytest.approx(share)


def test_confidence_at_the_threshold_is_enough(passes):
    for exit_, records in enumerate(passes[2][:-1]):
        confidence = records.confidence[7].item()
        assert ExitRule(2, exit_, confidence).exit_index(passes[2])[7] == exit_


@pytest.mark.parametrize("budget", [1.5, 8.0, 40.0, 120.0])
def test_chosen_rule_is_the_best_of_many(network, passes, budget):
    chosen = choose_exit_rule(passes, network.costs, budget)
    records = apply_exit_rule(passes, chosen, network.costs)
    assert records.computation(network.costs).mean() <= budget + 1e-9
    for option, first, share in itertools.product(range(3), range(3), (0.0, 0.3, 0.7, 1.0, 9.0)):
        other = apply_exit_rule(passes, ExitRule(option, first, share), network.costs)
        if other.computation(network.costs).mean() <= budget:
            # Thresholds are tried at every hundredth quantile.
            assert records.accuracy >= other.accuracy - 100 / 90


def test_static_tables_may_exit(network, images):
    tables = [(2, 1, 0, EXIT), (2, EXIT, 1, 1), (EXIT, 2, EXIT, 0), (2, 2, 2, 2)]
    alone = [evaluate_static_table(network, images, table, name="table") for table in tables]
    expected = network.logits(images.images, (2, 1, 0, EXIT)).argmax(dim=1)
    assert torch.equal(alone[0].predictions, expected)
    for records, score in zip(alone, score_static_tables(network, images, tables), strict=True):
        assert score.correct == int(records.correct.sum())
        assert score.log_likelihood == pytest.approx(float(records.log_likelihood.mean()))


@pytest.mark.parametrize("limit", [30, 300])
def test_search_finds_tables_with_exits(network, images, limit):
    budget = float(network.costs.computation(torch.tensor([[2, EXIT, EXIT, EXIT]]))) + 0.1
    _, found = search_static_table(network, images, budget, search=SearchConfig(tables=limit))
    tables = network.costs.canonicalize(torch.tensor(list(itertools.product(range(4), repeat=4))))
    cheap = tables.unique(dim=0)[network.costs.computation(tables.unique(dim=0)) <= budget]
    best = max(score.correct for score in score_static_tables(network, images, cheap.tolist()))
    assert found.accuracy <= 100 * best / 90 + 1e-9
    assert found.computation <= budget + 1e-9
    if limit == 300:
        assert found.exhaustive
        assert found.accuracy == pytest.approx(100 * best / 90)


def test_mode_table_ends_at_its_exit(network):
    options = torch.tensor([[1, 3, 3, 3], [1, 3, 3, 3], [1, 0, 1, 1], [1, 1, 1, 1], [1, 2, 1, 1]])
    assert mode_table(options, network.costs) == (1, EXIT, EXIT, EXIT)


def test_exiting_gate_has_every_baseline(network, images):
    val = make_images(network, 80, seed=6)
    gate, on_val = (evaluate_gate(network, SureGate(), i) for i in (images, val))
    assert 0 < gate.exit_shares(network.costs)[0] < 1
    (again,) = evaluate_draws(network, images, [gate.options], name="again")
    assert torch.equal(again.predictions, gate.predictions)
    methods = run_baselines(make_setup(network, images, val, gate, on_val))
    by_key = {method.key: method for method in methods if method.role == "matched"}
    assert list(by_key) == ["static_table", "cascade", "exits", "mode_table", "random", "patterns"]
    budget = with_cost_tolerance(float(on_val.computation(network.costs).mean()))
    assert by_key["exits"].selection.computation(network.costs).mean() <= budget + 1e-9
    assert "exit" in by_key["exits"].detail
    cost = float(gate.computation(network.costs, "dfs").mean())
    for draw in by_key["random"].records:
        assert float(draw.computation(network.costs, "dfs").mean()) == pytest.approx(cost)


def test_budget_below_one_pass_has_no_cascade():
    network = MixBackbone((4, 8, 32), exits=AFTER)
    images, val = (make_images(network, 60, seed=seed) for seed in (5, 6))
    options = torch.tensor([*[(0, EXIT, EXIT, EXIT)] * 9, (1, EXIT, EXIT, EXIT)] * 6)
    gate, on_val = (
        evaluate_draws(network, split, [options], name="brief")[0] for split in (images, val)
    )
    budget = float(on_val.computation(network.costs).mean())
    assert budget < float(network.costs.computation(torch.zeros(1, 4, dtype=torch.int64)))
    methods = run_baselines(make_setup(network, images, val, gate, on_val))
    matched = [method for method in methods if method.role == "matched"]
    keys = ["static_table", "exits", "mode_table", "random", "patterns"]
    assert [method.key for method in matched] == keys
    for method in matched[:2]:
        assert float(method.selection.computation(network.costs).mean()) <= 1.05 * budget
    result = MethodResult(key="gate", label="brief", role="gate", records=(gate,))
    text = summary_text(summarize([result, *methods], network.costs, **NAMES))
    assert "no cascade at the gate's cost" in " ".join(text.split())


def test_summary_has_the_share_of_each_exit(network, images):
    records = evaluate_gate(network, SureGate(), images)
    gate = MethodResult(key="gate", label="sure", role="gate", records=(records,))
    summary = summarize([gate], network.costs, **NAMES)
    share = float((records.options[:, 1] == EXIT).double().mean())
    assert summary.exits_after == AFTER
    assert summary.by_key["gate"].exit_shares == (pytest.approx(share), 0.0)
    assert [row[EXIT] for row in summary.histogram] == pytest.approx([0.0, share, share, share])
    outside = sum(part.percent for part in summary.shares)
    total, gated = (float(records.computation(network.costs, c).mean()) for c in ("full", "dfs"))
    assert outside == pytest.approx(total - gated)
    assert {part.name: part.macs for part in summary.shares}["exits"] == pytest.approx(21 * share)
    text = " ".join(summary_text(summary).split())
    assert f"Exits, sure: {100 * share:.1f} % after layer 1." in text
    figure = options_plot([summary.histogram], network.options)
    assert len(figure.axes[0].get_legend_handles_labels()[1]) == 4  # three options and the exit
