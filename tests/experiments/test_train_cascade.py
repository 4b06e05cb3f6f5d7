"""Command ``train_cascade``: run folder, comparison and refusal of bad input."""

import pytest

import dfs_rl
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_cascade import main
from dfs_rl.utils.config import config_from_dict
from dfs_rl.utils.io import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "run"
    assert main(["--budget", "0.9", "--device", "cpu", "--run-dir", str(path)]) == 0
    return path


def test_run_has_a_cascade_within_the_budget(finished):
    gate = load_gate(finished / "gate")
    assert isinstance(gate, CascadeGate)
    digits = load_dataset("digits")
    _, trace = dfs_rl.load(finished)(digits.val.images)
    assert 0 < int(trace.escalated.sum()) < len(digits.val)
    assert 0.8 < float(trace.computation.mean()) <= 0.9
    training = read_json(finished / "training.json")
    assert training["best_on_val"]["computation"] == pytest.approx(float(trace.computation.mean()))
    summary = read_json(finished / "summary.json")
    methods = {method["key"]: method for method in summary["methods"]}
    # The baseline has the cost tolerance of every baseline.
    own = methods["gate"]["computation"]
    assert own <= methods["cascade"]["computation"] <= with_cost_tolerance(own)
    assert methods["gate"]["detail"] == gate.description
    # The marginals of a cascade are those of one pass, so these baselines do not apply.
    assert not {"mode_table", "random", "patterns"} & set(methods)
    assert summary["beyond_marginals"] is None
    shares = {share["name"]: share["macs"] for share in summary["shares"]}
    _, trace = dfs_rl.load(finished)(digits.test.images)
    head = next(part for part in default_digits().costs.fixed if part.name == "head")
    assert shares["head"] == pytest.approx(head.macs * (1 + trace.escalated.double().mean().item()))


def test_budget_below_two_passes_leaves_one(tmp_path):
    assert main(["--budget", "0.3", "--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 0
    _, trace = dfs_rl.load(tmp_path / "run")(load_dataset("digits").val.images)
    assert float(trace.computation.mean()) <= 0.3


def test_finished_run_is_compared(finished, tmp_path, capsys):
    assert main(["--resume", str(finished)]) == 0
    assert f"The training in {finished} is finished." in capsys.readouterr().err
    assert compare_main([str(finished), "--run-dir", str(tmp_path / "report")]) == 0
    path = tmp_path / "report" / "comparison.json"
    comparison = config_from_dict(read_json(path), ComparisonOfRuns, str(path))
    (gate,) = (point for point in comparison.points if point.kind == "gate")
    assert gate.label == "cascade"
    assert set(gate.gains) == {"static_table", "cascade"}
    (cascade,) = (point for point in comparison.points if point.kind == "cascade")
    gain = gate.accuracy.mean - cascade.accuracy.mean
    assert gate.gains["cascade"].mean == pytest.approx(gain)
