"""Command ``train_static``: run folder, comparison and refusal of bad input."""

import pytest

import dfs_rl
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.experiments.config import TrainStaticConfig
from dfs_rl.experiments.static_search import search_timesteps
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_static import main
from dfs_rl.utils.io import read_json

TINY = ["--episodes", "30", "--images", "60", "--budget", "1.0", "--device", "cpu"]


@pytest.fixture(scope="module", params=["ddpg", "greedy"])
def finished(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "run"
    assert main([*TINY, "--method", request.param, "--run-dir", str(path)]) == 0
    return path


def test_run_has_a_table_within_the_budget(finished):
    gate = load_gate(finished / "gate")
    assert isinstance(gate, TableGate)
    digits = load_dataset("digits")
    logits, trace = dfs_rl.load(finished)(digits.test.images[:5])
    assert logits.shape == (5, 10)
    assert trace.options.tolist() == [list(gate.table)] * 5
    assert float(trace.computation.max()) <= 1.0
    methods = read_json(finished / "summary.json")["methods"]
    frozen = default_digits().to_inference()
    records = evaluate_static_table(frozen, digits.test, gate.table, name="t")
    assert methods[0]["accuracy"] == pytest.approx(records.accuracy)
    assert {"static_table", "cascade"} <= {method["key"] for method in methods}


def test_finished_run_is_compared(finished, tmp_path, capsys):
    metrics = (finished / "metrics.jsonl").read_text()
    assert main(["--resume", str(finished)]) == 0
    assert f"The training in {finished} is finished." in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_text() == metrics
    assert compare_main([str(finished), "--run-dir", str(tmp_path / "report")]) == 0
    assert "static" in (tmp_path / "report" / "points.csv").read_text()


def test_search_has_one_step_per_layer_and_table():
    costs = CostTable(options=BitOptions((0, 2, 32)), layer_macs=(1,) * 9)
    assert search_timesteps(TrainStaticConfig(method="sac", episodes=200), costs) == 1800
    assert search_timesteps(TrainStaticConfig(method="greedy"), costs) == 9 * 2
