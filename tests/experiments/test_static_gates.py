"""Commands ``train_static`` and ``train_cascade``: run folders, and their comparison."""

import pytest

import dfs_rl
from dfs_rl import train_cascade, train_static
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.experiments.search_config import TrainStaticConfig
from dfs_rl.experiments.static_search import search_timesteps
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.io import read_json
from tests.helpers.shown import read_comparison

TINY = ["--episodes", "30", "--images", "60", "--budget", "1.0", "--device", "cpu"]


@pytest.fixture(scope="module")
def static_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("static") / "ddpg"
    assert train_static.main([*TINY, "--method", "ddpg", "--run-dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def cascade_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cascade") / "run"
    flags = ["--budget", "0.9", "--passes", "2", "--answer", "last", "--device", "cpu"]
    flags += ["--stopping", "confidence"]
    assert train_cascade.main([*flags, "--run-dir", str(path)]) == 0
    return path


def check_table(run):
    gate = load_gate(run / "gate")
    assert isinstance(gate, TableGate)
    digits = load_dataset("digits")
    logits, trace = dfs_rl.load(run)(digits.test.images[:5])
    assert logits.shape == (5, 10)
    assert trace.options.tolist() == [list(gate.table)] * 5
    assert float(trace.computation.max()) <= 1.0
    methods = read_json(run / "summary.json")["methods"]
    frozen = default_digits().to_inference()
    records = evaluate_static_table(frozen, digits.test, gate.table, name="t")
    assert methods[0]["accuracy"] == pytest.approx(records.accuracy)
    assert {"static_table", "cascade"} <= {method["key"] for method in methods}


def test_learned_table_is_within_the_budget(static_run):
    check_table(static_run)


def test_greedy_table_is_within_the_budget(tmp_path):
    run = tmp_path / "greedy"
    assert train_static.main([*TINY, "--method", "greedy", "--run-dir", str(run)]) == 0
    check_table(run)


def test_cascade_is_within_the_budget(cascade_run):
    gate = load_gate(cascade_run / "gate")
    assert isinstance(gate, RuleGate)
    digits = load_dataset("digits")
    _, trace = dfs_rl.load(cascade_run)(digits.val.images)
    assert 0 < int(trace.n_passes.gt(1).sum()) < len(digits.val)
    assert 0.5 < float(trace.computation.mean()) <= 0.9
    training = read_json(cascade_run / "training.json")
    assert training["best_on_val"]["computation"] == pytest.approx(float(trace.computation.mean()))
    summary = read_json(cascade_run / "summary.json")
    methods = {method["key"]: method for method in summary["methods"]}
    # The baseline has the cost tolerance of every baseline.
    own = methods["gate"]["computation"]
    assert methods["cascade"]["computation"] <= 1.1 * own  # about the same on test as on val
    assert methods["gate"]["detail"].startswith(f"{gate.description}; ")
    # A table has one pass. Without their relation to images, the same passes are worse.
    assert {"mode_table", "random", "patterns"} & set(methods) == {"random", "patterns"}
    assert summary["beyond_marginals"] in (True, False)  # it is compared with them
    for key in ("random", "patterns"):
        assert methods[key]["computation"] == pytest.approx(own)
        assert methods[key]["accuracy"] < methods["gate"]["accuracy"] - 0.5
    shares = {share["name"]: share["macs"] for share in summary["shares"]}
    _, trace = dfs_rl.load(cascade_run)(digits.test.images)
    head = next(part for part in default_digits().costs.fixed if part.name == "head")
    assert shares["head"] == pytest.approx(head.macs * trace.n_passes.double().mean().item())


def test_budget_below_useful_passes_holds(tmp_path):
    run = tmp_path / "run"
    assert train_cascade.main(["--budget", "0.3", "--device", "cpu", "--run-dir", str(run)]) == 0
    _, trace = dfs_rl.load(run)(load_dataset("digits").val.images)
    assert float(trace.computation.mean()) <= 0.3


def test_rules_for_all_budgets(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--passes", "2", "--mirrored", "--answer", "mean", "--max-accuracy-drop", "1.5"]
    flags += ["--stopping", "confidence"]
    assert train_cascade.main([*flags, "--device", "cpu", "--run-dir", str(run)]) == 0
    said = capsys.readouterr().err
    assert "Chosen on agent and val, answering with the mean of the passes:" in said
    assert "bit below a confidence of" in said
    gate, val = load_gate(run / "gate"), load_dataset("digits").val
    measured = gate.budget_conditioning
    assert gate.preference == measured.preference_for_accuracy_drop(1.5)
    training = read_json(run / "training.json")
    assert training["points_on_val"] == [
        list(point) for point in zip(measured.computations, measured.accuracies, strict=True)
    ]
    model = dfs_rl.load(run)
    for budget in (0.52, 0.7, 1.2):
        model.set_budget(budget)
        logits, trace = model(val.images)
        assert 0.9 * budget < float(trace.computation.mean()) <= budget
        index = measured.computations.index(pytest.approx(float(trace.computation.mean())))
        right = (logits.argmax(dim=1) == val.labels).double().mean().item()
        assert measured.accuracies[index] == pytest.approx(100 * right)


def test_rules_that_stop_by_gains(tmp_path):
    run, flags = tmp_path / "run", ["--stopping", "gain", "--budget", "0.8"]
    assert train_cascade.main([*flags, "--device", "cpu", "--run-dir", str(run)]) == 0
    model, val = dfs_rl.load(run), load_dataset("digits").val
    assert (model.gate.name, model.gate.n_classes) == ("fitted rule, 3 passes", 10)
    logits, trace = model(val.images)
    best = read_json(run / "training.json")["best_on_val"]
    assert best["computation"] == pytest.approx(float(trace.computation.mean()))
    assert best["computation"] <= 0.8
    right = (logits.argmax(dim=1) == val.labels).double().mean().item()
    assert best["accuracy"] == pytest.approx(100 * right)
    assert "bit for a predicted gain above" in best["choice"]


def test_finished_runs_are_compared(static_run, cascade_run, tmp_path, capsys):
    for run, main in ((static_run, train_static.main), (cascade_run, train_cascade.main)):
        metrics = (run / "metrics.jsonl").read_bytes() if run is static_run else None
        assert main(["--resume", str(run)]) == 0
        assert f"The training in {run} is finished." in capsys.readouterr().err
        assert metrics is None or (run / "metrics.jsonl").read_bytes() == metrics
    report = tmp_path / "report"
    assert compare_main([str(static_run), str(cascade_run), "--run-dir", str(report)]) == 0
    comparison = read_comparison(report)
    gates = {point.label: point for point in comparison.points if point.kind == "gate"}
    assert len(gates) == 2
    assert any("static" in label for label in gates)
    gate = gates["tuned rule, 2 passes"]
    assert set(gate.gains) == {"static_table", "cascade", "random", "patterns"}
    cascades = [point for point in comparison.points if point.kind == "cascade"]
    gains = [gate.accuracy.mean - cascade.accuracy.mean for cascade in cascades]
    assert any(gate.gains["cascade"].mean == pytest.approx(gain) for gain in gains)


def test_search_has_one_step_per_layer_and_table():
    costs = CostTable(options=BitOptions((0, 2, 32)), layer_macs=(1,) * 9)
    assert search_timesteps(TrainStaticConfig(method="sac", episodes=200), costs) == 1800
    assert search_timesteps(TrainStaticConfig(method="greedy"), costs) == 9 * 2
