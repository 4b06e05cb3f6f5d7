"""The command from its flags to its run folder, and the sentences with which it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

import dfs_rl
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.experiments.static_search import search_timesteps
from dfs_rl.experiments.static_training import TrainStaticConfig
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_static import main
from dfs_rl.utils.config import load_config, save_config
from dfs_rl.utils.io import read_json

TINY = ["--episodes", "30", "--images", "60", "--budget", "1.0", "--device", "cpu"]


@pytest.fixture(scope="module", params=["ddpg", "greedy"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "run"
    assert main([*TINY, "--method", request.param, "--run-dir", str(path)]) == 0
    return path


def test_a_run_folder_holds_a_table_within_the_budget(finished: Path) -> None:
    gate = load_gate(finished / "gate")
    assert isinstance(gate, TableGate)
    model = dfs_rl.load(finished)
    digits = load_dataset("digits")
    logits, trace = model(digits.test.images[:5])
    assert logits.shape == (5, 10)
    assert trace.options.tolist() == [list(gate.table)] * 5
    assert float(trace.computation.max()) <= 1.0
    summary = read_json(finished / "summary.json")
    first = summary["methods"][0]
    records = evaluate_static_table(
        default_digits().to_inference(), digits.test, gate.table, name="t"
    )
    assert first["accuracy"] == pytest.approx(records.accuracy)
    assert {"static_table", "cascade"} <= {m["key"] for m in summary["methods"]}


def test_a_finished_run_says_so_and_can_be_compared(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = (finished / "metrics.jsonl").read_text()
    assert main(["--resume", str(finished)]) == 0
    assert f"The training in {finished} is finished." in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_text() == metrics
    assert compare_main([str(finished), "--run-dir", str(tmp_path / "report")]) == 0
    assert "static" in (tmp_path / "report" / "points.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "0.05"], "budget 0.05 % is not enough for the cheapest choice"),
        (["--budget", "inf"], "budget is inf; it must be finite"),
        (["--episodes", "0"], "episodes is 0; it must be at least 1"),
        (["--images", "0"], "images is 0; it must be at least 1"),
        (["--seed", "-1"], "seed is -1"),
        (["--method", "sarsa"], "method"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
        (["--backbone", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(
    refusal: Callable[..., str], flags: list[str], words: str
) -> None:
    assert words in refusal(main, [*TINY, *flags])


def test_a_search_makes_one_choice_per_layer_and_table() -> None:
    costs = CostTable(options=BitOptions((0, 2, 32)), layer_macs=(1,) * 9)
    assert search_timesteps(TrainStaticConfig(method="sac", episodes=200), costs) == 1800
    assert search_timesteps(TrainStaticConfig(method="greedy"), costs) == 9 * 2


def test_every_setting_survives_the_run_folders_yaml(tmp_path: Path) -> None:
    config = TrainStaticConfig(backbone=tmp_path, method="td3", budget=1.5, episodes=7)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", TrainStaticConfig) == config
