"""Gates that start from tuned rules: choice of rules, comparison on val, what ships."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dfs_rl
from dfs_rl.agents.validation import rewards_of
from dfs_rl.backbones import default_digits
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import load_dataset
from dfs_rl.envs import make_task
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.evaluation.pass_outputs import PassOutputs
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.experiments.rule_gates import TunedRules, _between, keep_better
from dfs_rl.experiments.session import TrainingRecord
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import LearnedGate, MLPGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import RuleGate, RulePass
from dfs_rl.gating.storage import save_gate
from dfs_rl.train_agent import main
from dfs_rl.utils.run_folder import RunFolder


@pytest.fixture(scope="module")
def tuned():
    backbone = default_digits().to_inference()
    dataset = load_dataset("digits")
    rules = TunedRules(backbone, dataset, limit=2, mirrored=False, answer="mean")
    return rules, backbone, dataset


def records(correct):
    n = len(correct)
    zeros = torch.zeros(n, dtype=torch.int64)
    return GateRecords(
        name="rule",
        predictions=torch.tensor(correct),
        labels=zeros + 1,
        options=torch.zeros(n, 2, dtype=torch.int64),
        log_likelihood=torch.zeros(n),
        confidence=torch.ones(n),
    )


def test_between_two_rules():
    rules = [records([0, 0, 1, 1]), records([0, 1, 0, 1]), records([1, 1, 1, 1])]
    costs = [1.0, 2.0, 4.0]
    assert _between(rules, costs, 1.0).tolist() == [0, 0, 1, 1]
    assert _between(rules, costs, 1.25).tolist() == [0, 0.25, 0.75, 1]
    assert _between(rules, costs, 3.0).tolist() == [0.5, 1, 0.5, 1]
    assert _between(rules, costs, 9.0).tolist() == [1, 1, 1, 1]


def test_rules_have_the_highest_reward(tuned):
    rules, backbone, dataset = tuned
    task = make_task(dataset=dataset, cost_weight_range=(0.1, 30.0), passes=rules.settings)
    chosen = rules.for_task(task)
    assert len(chosen.rules) == 33
    images = dataset.val
    for i in (0, 10, 20, 32):
        weight = 30.0 * (0.1 / 30.0) ** (i / 32)
        at = torch.full((len(images),), i / 32)
        own = evaluate_gate(backbone, chosen, images, preferences=at)
        spent = own.computation(backbone.costs).mean() / 100
        reward = 0.5 * own.correct.double() + 0.5 * (own.log_likelihood / 3).clamp(min=-1)
        mean = reward.mean() - weight * spent
        for rule in rules.gate.rules:  # val alone differs a little from agent and val
            other = rules._val.records(rule, "mean", name="rule")
            reward = 0.5 * other.correct.double() + 0.5 * (other.log_likelihood / 3).clamp(min=-1)
            spent = other.computation(backbone.costs).mean() / 100
            assert mean >= reward.mean() - weight * spent - 0.02


@pytest.mark.parametrize("budget", [None, 0.8])
def test_stopping_is_chosen_on_val(tuned, budget):
    _, backbone, dataset = tuned
    settings = {"limit": 2, "mirrored": False, "answer": "mean"}
    default = TunedRules(backbone, dataset, budget=budget, stopping=None, **settings)
    half = len(dataset.agent) // 2
    first, second = (
        dataset.agent.subset(torch.arange(*ends)) for ends in ((half,), (half, len(dataset.agent)))
    )
    # Rules that val did not choose: fitted on a half of the agent split, with costs of the other.
    halves = replace(dataset, agent=first, val=second)

    def figures(stopping):
        gate = TunedRules(backbone, halves, stopping=stopping, **settings).gate
        found, last = [], len(gate.rules) - 1
        for i in range(last + 1):
            at = torch.full((len(dataset.val),), i / last)
            own = evaluate_gate(backbone, gate, dataset.val, preferences=at)
            found.append((own.computation(backbone.costs).mean().item(), own.accuracy))
        return found

    ours, theirs = figures("gain"), sorted(figures("confidence"))
    places = sorted({round(i * (len(ours) - 1) / 8) for i in range(9)})
    expected = np.interp([ours[i][0] for i in places], *zip(*theirs, strict=True))
    differences = np.array([ours[i][1] for i in places]) - expected
    assert default.gain["difference"] == pytest.approx(differences.mean())
    stops_by_gain = bool(default.gate.rules[0].gains) or default.gate.n_classes is not None
    assert stops_by_gain == (default.gain["difference"] > 1.96 * default.gain["error"])


def test_stopping_is_by_gain_where_the_class_tells_more_than_the_confidence():
    """A second pass corrects what the first one calls class 1, at one confidence for all."""
    n = 400
    first = [[0.6, 0.4] if i % 2 else [0.4, 0.6] for i in range(n)]
    outputs = PassOutputs(
        settings=(RulePass(options=(0,)), RulePass(options=(1,))),
        logits=torch.tensor([first, [[0.6, 0.4]] * n]).log(),
        labels=torch.zeros(n, dtype=torch.int64),
    )
    rules = TunedRules.__new__(TunedRules)  # from these outputs instead of images
    rules.costs = CostTable(options=BitOptions((8, 32)), layer_macs=(100,))
    rules.settings, rules._val = PassSettings(limit=2, answer="last"), outputs
    assert rules._better_stopping(outputs) == "gain"
    # 8 bit cost a sixteenth: between, confidence has half the images right, and gains all.
    assert rules.gain["difference"] > 5.0
    assert rules.gain["difference"] > 1.96 * rules.gain["error"] > 0.0


def test_rewards_count_every_pass(tuned):
    rules, backbone, dataset = tuned
    costs = backbone.costs
    task = make_task(dataset=dataset, passes=rules.settings)
    gate = rules.for_task(task)
    own = evaluate_gate(backbone, gate, dataset.val)
    assert 1 < own.mean_passes < 2
    rewards = rewards_of(own, costs, task.reward, budget=None)
    spent = own.computation(costs) / 100 - costs.fixed_cost()
    likelihood = (own.log_likelihood / 3).clamp(min=-1)
    expected = 0.5 * own.correct.double() + 0.5 * likelihood - task.reward.cost * spent
    torch.testing.assert_close(rewards, expected)


def uniform_gate(rules, option, **settings):
    """Return a gate that runs every layer of one pass with an option."""
    gate = MLPGate((0,) * 6, BitOptions((0, 2, 3, 4, 8, 32)), passes=rules.settings, **settings)
    for parameter in gate.parameters():
        torch.nn.init.zeros_(parameter)
    for network in gate.networks[:-1]:
        network[2].bias.data[option] = 9.0
    return gate


def test_comparison_of_a_bad_gate(tuned):
    rules, backbone, _ = tuned
    gate = uniform_gate(rules, 0, budget_conditioning=BudgetConditioning())
    gate.networks[0][2].bias.data[1] = 10.0  # 2 bit at the first layer, then skips alone
    assert rules.compare(gate, backbone)["kept"] == "rules"
    # full precision, as accurate as any rule
    gate = uniform_gate(rules, 5, budget_conditioning=BudgetConditioning())
    compared = rules.compare(gate, backbone)
    assert len(compared["differences"]) == 9
    best = max(
        rules._val.records(rule, "mean", name="rule").accuracy for rule in rules.gate.rules[-1:]
    )
    own = evaluate_gate(backbone, gate, tuned[2].val, preferences=torch.ones(len(tuned[2].val)))
    assert compared["difference"] == pytest.approx(own.accuracy - best)
    assert abs(compared["difference"]) < 2 * compared["error"]
    assert compared["kept"] == "rules"


@pytest.mark.parametrize("n_images", [12, 50, 216])
def test_a_gate_replaces_rules_if_it_is_significantly_better(tuned, n_images):
    _, backbone, dataset = tuned
    few = replace(dataset, val=dataset.val.subset(torch.arange(n_images)))
    rules = TunedRules(backbone, few, limit=2, mirrored=False, answer="mean", budget=0.5)
    gate = uniform_gate(rules, 5)
    compared = rules.compare(gate, backbone)
    own = evaluate_gate(backbone, gate, few.val).correct.double()
    other = evaluate_gate(backbone, rules.gate, few.val).correct.double()
    difference, error = 100 * (own - other).mean(), 100 * (own - other).std() / n_images**0.5
    assert compared["difference"] == pytest.approx(difference.item())
    assert compared["error"] == pytest.approx(error.item())
    assert (compared["kept"] == "gate") == (n_images == 216)
    assert difference >= 0


def test_rules_are_kept_if_only_they_hold_the_budget(tuned):
    rules, backbone, _ = tuned
    least, _ = rules.gate.budget_conditioning.budget_range
    gate = uniform_gate(rules, 5)
    rules = copy.copy(rules)
    rules.gate = RuleGate(rules.gate.rules[:1], answer="mean", options=rules.gate.options)
    free = rules.compare(gate, backbone)
    cost = evaluate_gate(backbone, gate, tuned[2].val).computation(backbone.costs).mean().item()
    assert free["least"] == pytest.approx(cost)
    assert free["kept"] == "gate"
    for budget, decided in [(least / 2, False), (least, True), (cost - 1, True), (cost, False)]:
        bound = rules.compare(gate, backbone, budget=budget)
        assert bound["kept"] == ("rules" if decided else free["kept"])
        assert bound["difference"] == free["difference"]


@pytest.mark.parametrize(
    ("difference", "why"),
    [
        (-1.78, "is worse"),
        (-1.1, "is not significantly better"),
        (0.9, "is not significantly better"),
    ],
)
def test_a_significant_loss_is_called_worse(tuned, tmp_path, capsys, difference, why):
    gate = tuned[0].gate
    rules = SimpleNamespace(
        compare=lambda *_, **__: {"difference": difference, "error": 0.61, "kept": "rules"},
        set_cost_weight=lambda _: None,
        gate=copy.copy(gate),
        figures_on_val=dict,
        gain=None,
    )
    save_gate(MLPGate((0,) * 6, BitOptions((0, 2, 3, 4, 8, 32))), tmp_path / "gate")
    task = SimpleNamespace(images=tuned[2].val, backbone=None)
    keep_better(
        TrainingRecord(best_on_val={}, points_on_val=(), images_seen={}),
        *(rules, task, RunFolder(tmp_path, "train_agent")),
        name="PPO",
        budget=None,
    )
    assert f"because the learned gate {why}" in capsys.readouterr().err


def test_a_budget_below_the_cost_of_the_gate_ships_the_rules(tmp_path, capsys):
    run, flags = tmp_path / "run", ["--timesteps", "2000", "--num-envs", "64", "--budget", "0.5"]
    assert main([*flags, "--run-dir", str(run)]) == 0
    said = capsys.readouterr().err
    assert "costs at least 0.592 % with a learned gate, so the tuned rules will ship" in said
    assert "--hidden below 8" in said
    compared = json.loads((run / "training.json").read_text())["best_on_val"]["rules"]
    assert compared["kept"] == "rules"
    assert compared["least"] > 0.5
    model = dfs_rl.load(run)
    assert type(model.gate) is RuleGate
    assert model.gate.name in {"PPO, tuned rule", "PPO, fitted rule"}
    _, trace = model(load_dataset("digits").val.images)
    assert trace.computation.mean() <= 0.5


def test_a_budget_below_rules_and_gate_is_refused_before_the_training(tuned, tmp_path, capsys):
    least, _ = tuned[0].gate.budget_conditioning.budget_range
    assert tuned[0].least_cost == least
    run, flags = tmp_path / "run", ["--timesteps", "2000", "--num-envs", "64", "--passes", "2"]
    assert main([*flags, "--budget", f"{0.99 * least}", "--run-dir", str(run)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{least:.3g} % with the cheapest tuned rule and 0.568 % with a learned gate" in said
    assert (run / "metrics.jsonl").read_text() == ""


def test_what_ships_is_never_worse(tmp_path):
    run = tmp_path / "run"
    flags = ["--passes", "2", "--timesteps", "3000", "--num-envs", "64", "--budget", "0.9"]
    main([*flags, "--run-dir", str(run), "--seed", "1"])
    training = json.loads((run / "training.json").read_text())
    compared = training["best_on_val"]["rules"]
    model = dfs_rl.load(run)
    assert type(model.gate) in {RuleGate, MLPGate}
    assert (compared["kept"] == "gate") == isinstance(model.gate, LearnedGate)
    assert (compared["difference"] > 1.96 * compared["error"]) == (compared["kept"] == "gate")
    assert compared["difference"] == pytest.approx(np.mean(compared["differences"]))
    assert ("timesteps" in training["best_on_val"]) == (compared["kept"] == "gate")
    _, trace = model(load_dataset("digits").val.images)
    assert trace.computation.mean() <= 0.9 + 1e-6
    summary = json.loads((run / "summary.json").read_text())
    labels = {method["key"]: method["label"] for method in summary["methods"]}
    assert labels["tuned_rule"] == "best tuned rule"
    assert labels["gate"] in {"PPO", "PPO, tuned rule", "PPO, fitted rule"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--passes", "0"], "passes is 0"),
        (["--passes", "3", "--algo", "dqn"], "passes is 3, but algo is 'dqn'"),
        (["--passes", "3", "--algo", "recurrent_ppo"], "passes is 3, but algo is 'recurrent_ppo'"),
        (["--passes", "3", "--backbone-mode", "co-train"], "backbone_mode is 'co-train'"),
        (["--passes", "3", "--start", "uniform"], "start is 'uniform'"),
        (["--passes", "3", "--group-size", "8"], "group_size is 8"),
        (["--start", "rule", "--passes", "1"], "start is 'rule', but passes is 1"),
        (["--answer", "last", "--passes", "1"], "answer is last, but passes is 1"),
        (["--mirrored", "--passes", "1"], "mirrored is true, but passes is 1"),
        (["--features", "none", "--passes", "1"], "features is none, but passes is 1"),
    ],
)
def test_bad_settings(flags, message, capsys, tmp_path):
    assert main([*flags, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
