"""Rivals on a network with exits: the rule of confidence, static tables that leave, shuffles that keep who leaves where."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_rl.costs import ExitCost
from dfs_rl.data.images import ImageSet
from dfs_rl.evaluation.baselines.early_exit import (
    ExitRule,
    apply_exit_rule,
    choose_exit_rule,
    run_exit_outputs,
)
from dfs_rl.evaluation.baselines.methods import (
    EvaluationSetup,
    MethodResult,
    matched_cost_baselines,
    mode_table,
    shuffled_options,
    uniform_baselines,
)
from dfs_rl.evaluation.evaluator import (
    evaluate_draws,
    evaluate_gate,
    evaluate_options,
    evaluate_static_table,
)
from dfs_rl.evaluation.metrics import option_histogram
from dfs_rl.evaluation.static_tables.scoring import score_static_tables
from dfs_rl.evaluation.static_tables.search import SearchConfig, search_static_table
from dfs_rl.evaluation.summary import Subject, summarize
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.reporting.figures import options_plot
from dfs_rl.reporting.tables import summary_text
from tests.evaluation.conftest import MixBackbone, make_images

AFTER = (1, 3)
LEAVE = 3


class LeavingBackbone(MixBackbone):
    """The network of mixes, with exits that say what the rest of it would say without its later layers."""

    layer_feature_macs = (0.0,) * 4

    def __init__(self, menu=(0, 2, 32)) -> None:
        super().__init__(menu)
        self.costs = type(self.costs)(
            options=self.options,
            layer_macs=self.costs.layer_macs,
            fixed=self.costs.fixed,
            exits=tuple(ExitCost(after=after, macs=20 + after, bits=8) for after in AFTER),
        )

    def answer(self, hidden, layer):
        return self.head(hidden)


@pytest.fixture
def network() -> LeavingBackbone:
    return LeavingBackbone()


@pytest.fixture
def images(network) -> ImageSet:
    return make_images(network, 90, seed=5)


def by_hand(network, images, rule):
    """Every image in a plain loop: prediction, layers walked, MACs as if at 32 bit."""
    told = []
    for image in images.images:
        hidden, macs, bits = network.stem(image[None]), 50 / 16, network.options[rule.option]
        for layer in range(4):
            if layer in AFTER and AFTER.index(layer) >= rule.first:
                macs += (20 + layer) / 16
                logits = network.answer(hidden, layer)
                if float(logits.softmax(dim=1).max()) >= rule.threshold:
                    told.append((int(logits.argmax()), layer, macs))
                    break
            macs += network.costs.layer_macs[layer] * (bits / 32) ** 2
            hidden = network.layers[layer](hidden, bits)
        else:
            told.append((int(network.head(hidden).argmax()), 4, macs + 10))
    return told


@pytest.mark.parametrize("rule", [(1, 0, 0.6), (2, 1, 0.9), (2, 0, 0.5), (0, 2, 0.3), (2, 0, 2.0)])
def test_images_leave_at_the_first_exit_that_is_sure(network, images, rule):
    rule = ExitRule(*rule)
    records = apply_exit_rule(run_exit_outputs(network, images, batch_size=32), rule, network.costs)
    told = by_hand(network, images, rule)
    # The head of this toy is no part that leaving spares.
    macs = [m + (10 if n_layers_run < 4 else 0) for _, n_layers_run, m in told]
    assert records.predictions.tolist() == [prediction for prediction, _, _ in told]
    assert network.costs.n_layers_run(records.options).tolist() == [
        n_layers_run for _, n_layers_run, _ in told
    ]
    computation = records.computation(network.costs).tolist()
    assert computation == pytest.approx([m / 10 for m in macs])
    if rule.threshold < 1:
        assert sum(records.exit_shares(network.costs)) == pytest.approx(
            sum(n_layers_run < 4 for _, n_layers_run, _ in told) / len(told)
        )


@pytest.mark.parametrize("budget", [1.5, 8.0, 40.0, 120.0])
def test_the_chosen_rule_is_the_best_of_many(network, images, budget):
    passes = run_exit_outputs(network, images)
    chosen = choose_exit_rule(passes, network.costs, budget)
    records = apply_exit_rule(passes, chosen, network.costs)
    assert records.computation(network.costs).mean() <= budget + 1e-9
    for option, first, share in itertools.product(range(3), range(3), (0.0, 0.3, 0.7, 1.0, 9.0)):
        other = apply_exit_rule(passes, ExitRule(option, first, share), network.costs)
        if other.computation(network.costs).mean() <= budget:
            # Thresholds are tried at every hundredth quantile.
            assert records.accuracy >= other.accuracy - 100 / 90


def test_a_table_may_leave(network, images):
    records = evaluate_static_table(network, images, (2, 1, 0, LEAVE), name="table")
    hidden = network.stem(images.images)
    for layer, bits in enumerate((32, 2, 0)):
        hidden = network.layers[layer](hidden, bits)
    assert torch.equal(records.predictions, network.head(hidden).argmax(dim=1))
    tables = [(2, 1, 0, LEAVE), (2, LEAVE, 1, 1), (LEAVE, 2, LEAVE, 0), (2, 2, 2, 2)]
    for table, score in zip(tables, score_static_tables(network, images, tables), strict=True):
        alone = evaluate_static_table(network, images, table, name="table")
        assert score.correct == int(alone.correct.sum())
        assert score.log_likelihood == pytest.approx(float(alone.log_likelihood.mean()))


def test_draws_that_leave_come_out_as_each_image_alone(network, images):
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randint(0, 4, (len(images), 4), generator=generator) for _ in range(3)]
    draws.append(torch.full((len(images), 4), LEAVE))  # all are gone before the end
    for options, made in zip(
        draws, evaluate_draws(network, images, draws, name="x", batch_size=32), strict=True
    ):
        canonical = network.costs.canonicalize(options)
        assert torch.equal(made.options, canonical)
        for i, image in enumerate(images.images):
            hidden = network.stem(image[None])
            for layer, action in enumerate(canonical[i].tolist()):
                if action == LEAVE:
                    logits = network.answer(hidden, layer)[0]
                    break
                hidden = network.layers[layer](hidden, network.options[action])
            else:
                logits = network.head(hidden)[0]
            assert int(made.predictions[i]) == int(logits.argmax())
            assert made.confidence[i].item() == pytest.approx(float(logits.softmax(0).max()))


@pytest.mark.parametrize("limit", [30, 300])
def test_the_search_finds_tables_that_leave(network, images, limit):
    budget = float(network.costs.computation(torch.tensor([[2, LEAVE, LEAVE, LEAVE]]))) + 0.1
    found = search_static_table(network, images, budget, search=SearchConfig(tables=limit))
    tables = network.costs.canonicalize(torch.tensor(list(itertools.product(range(4), repeat=4))))
    cheap = tables.unique(dim=0)[network.costs.computation(tables.unique(dim=0)) <= budget]
    best = max(score.correct for score in score_static_tables(network, images, cheap.tolist()))
    assert found.accuracy <= 100 * best / 90 + 1e-9
    if limit == 300:
        assert found.exhaustive
        assert found.accuracy == pytest.approx(100 * best / 90)
    assert found.computation <= budget + 1e-9


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_shuffling_keeps_who_leaves_where_and_the_cost(seed, n):
    costs, generator = LeavingBackbone().costs, torch.Generator().manual_seed(seed)
    options = costs.canonicalize(torch.randint(0, 4, (n, 4), generator=generator))
    dealt = shuffled_options(options, generator, exit_action=LEAVE)
    assert torch.equal(option_histogram(dealt, 4), option_histogram(options, 4))
    assert torch.equal(costs.canonicalize(dealt), dealt)
    means = [float(costs.fractions(o).mean()) for o in (options, dealt)]
    assert means[0] == pytest.approx(means[1])


def test_the_mode_table_ends_where_it_leaves():
    costs = LeavingBackbone().costs
    options = torch.tensor([[1, 3, 3, 3], [1, 3, 3, 3], [1, 0, 1, 1], [1, 1, 1, 1], [1, 2, 1, 1]])
    assert mode_table(options, costs) == (1, LEAVE, LEAVE, LEAVE)


class SureGate:
    """Leaves after one layer where the first feature is positive."""

    name, macs = "sure", 8.0

    def reset(self, batch_size):
        pass

    def decide(self, features, layer, context):
        leaves = (features[:, 0] > 0) & (layer == 1)
        return torch.where(leaves, LEAVE, torch.full((len(features),), 2))


def test_a_gate_that_leaves_is_compared_with_everything(network, images):
    val = make_images(network, 80, seed=6)
    records, on_val = (evaluate_gate(network, SureGate(), i) for i in (images, val))
    assert 0 < records.exit_shares(network.costs)[0] < 1
    again = evaluate_options(network, images, records.options, name="again")
    assert torch.equal(again.predictions, records.predictions)
    evaluation_setup = EvaluationSetup(
        reported=images, selection=val, reported_name="test", selection_name="val"
    )
    uniform = uniform_baselines(network, images, selection=val)
    baselines = matched_cost_baselines(
        network, evaluation_setup, gate=records, gate_selection=on_val, uniform=uniform
    )
    by_key = {method.key: method for method in baselines}
    assert set(by_key) == {"static_table", "cascade", "exits", "mode_table", "random", "patterns"}
    budget = float(on_val.computation(network.costs).mean())
    assert (
        by_key["exits"].selection.computation(network.costs).mean()
        <= with_cost_tolerance(budget) + 1e-9
    )
    assert "sure" in by_key["exits"].detail or "nowhere" in by_key["exits"].detail
    cost = float(records.computation(network.costs, "dfs").mean())
    for draw in by_key["random"].records:
        assert float(draw.computation(network.costs, "dfs").mean()) == pytest.approx(cost)


def test_what_leaves_for_less_than_any_whole_pass_has_no_cascade_beside_it():
    network = LeavingBackbone((4, 8, 32))
    images, val = (make_images(network, 60, seed=seed) for seed in (5, 6))
    tables = [*[(0, LEAVE, LEAVE, LEAVE)] * 9, (1, LEAVE, LEAVE, LEAVE)]
    options = torch.tensor(tables * 6)
    records, on_val = (
        evaluate_options(network, split, options, name="brief") for split in (images, val)
    )
    budget = float(on_val.computation(network.costs).mean())
    assert budget < float(network.costs.computation(torch.zeros(1, 4, dtype=torch.int64)))
    evaluation_setup = EvaluationSetup(
        reported=images, selection=val, reported_name="test", selection_name="val"
    )
    uniform = uniform_baselines(network, images, selection=val)
    baselines = matched_cost_baselines(
        network, evaluation_setup, gate=records, gate_selection=on_val, uniform=uniform
    )
    assert [m.key for m in baselines] == [
        "static_table",
        "exits",
        "mode_table",
        "random",
        "patterns",
    ]
    for method in baselines[:2]:
        assert float(method.selection.computation(network.costs).mean()) <= 1.05 * budget
    gate = MethodResult(
        key="gate", label="brief", role="gate", records=(records,), selection=on_val
    )
    subject = Subject(
        identity="0", dataset="mixes", fingerprint="0", split="test", class_names=tuple("abcd")
    )
    text = " ".join(
        summary_text(summarize([gate, *uniform, *baselines], network.costs, subject)).split()
    )
    assert "no confidence cascade at the gate's cost: a pass through the whole network" in text


def test_the_summary_tells_who_left_where(network, images):
    records = evaluate_gate(network, SureGate(), images)
    gate = MethodResult(key="gate", label="sure", role="gate", records=(records,))
    subject = Subject(
        identity="0",
        dataset="mixes",
        fingerprint="0",
        split="test",
        class_names=("a", "b", "c", "d"),
    )
    summary = summarize([gate], network.costs, subject)
    share = float((records.options[:, 1] == LEAVE).double().mean())
    assert summary.exits_after == AFTER
    assert summary.method("gate").exit_shares == (pytest.approx(share), 0.0)
    assert [row[LEAVE] for row in summary.histogram] == pytest.approx([0.0, share, share, share])
    beside = sum(part.percent for part in summary.shares)
    total, gated = (float(records.computation(network.costs, c).mean()) for c in ("full", "dfs"))
    assert beside == pytest.approx(total - gated)
    assert {part.name: part.macs for part in summary.shares}["exits"] == pytest.approx(21 * share)
    text = " ".join(summary_text(summary).split())
    assert f"Exits, sure: {100 * share:.1f} % after layer 1." in text
    names = options_plot(summary.histogram, network.options).axes[0].get_legend_handles_labels()[1]
    assert names == ["skip", "2 bit", "32 bit", "has left"]
