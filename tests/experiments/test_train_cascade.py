"""The command from its flags to a run that loads, compares and is refused in a sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

import dfs_rl
from dfs_rl import compare
from dfs_rl.backbones import default_digits
from dfs_rl.data import load_dataset
from dfs_rl.evaluation.comparison_records import ComparisonOfRuns
from dfs_rl.evaluation.verdict import with_cost_tolerance
from dfs_rl.experiments.cascade_training import TrainCascadeConfig
from dfs_rl.gating.cascade import CascadeGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_cascade import main
from dfs_rl.utils.config import config_from_dict, load_config, save_config
from dfs_rl.utils.io import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "run"
    assert main(["--budget", "0.9", "--device", "cpu", "--run-dir", str(path)]) == 0
    return path


def test_a_run_folder_holds_a_cascade_within_the_budget(finished: Path) -> None:
    gate = load_gate(finished / "gate")
    assert isinstance(gate, CascadeGate)
    val = load_dataset("digits").val.images
    _, trace = dfs_rl.load(finished)(val)
    assert 0 < int(trace.escalated.sum()) < len(val)
    assert 0.8 < float(trace.computation.mean()) <= 0.9
    training = read_json(finished / "training.json")
    assert training["best_on_val"]["computation"] == pytest.approx(float(trace.computation.mean()))
    summary = read_json(finished / "summary.json")
    methods = {method["key"]: method for method in summary["methods"]}
    # The cascade that gates are compared with has room in cost, as every baseline has.
    own = methods["gate"]["computation"]
    assert own <= methods["cascade"]["computation"] <= with_cost_tolerance(own)
    assert methods["gate"]["detail"] == gate.description
    # What is dealt out to other images is one pass, so a cascade has no such baselines.
    assert not {"mode_table", "random", "patterns"} & set(methods)
    assert summary["beyond_marginals"] is None
    shares = {share["name"]: share["macs"] for share in summary["shares"]}
    _, trace = dfs_rl.load(finished)(load_dataset("digits").test.images)
    head = next(part for part in default_digits().costs.fixed if part.name == "head")
    assert shares["head"] == pytest.approx(head.macs * (1 + trace.escalated.double().mean().item()))


def test_a_budget_below_two_passes_leaves_one(tmp_path: Path) -> None:
    assert main(["--budget", "0.3", "--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 0
    _, trace = dfs_rl.load(tmp_path / "run")(load_dataset("digits").val.images)
    assert float(trace.computation.mean()) <= 0.3


def test_a_finished_run_says_so_and_can_be_compared(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", str(finished)]) == 0
    assert f"The training in {finished} is finished." in capsys.readouterr().err
    assert compare.main([str(finished), "--run-dir", str(tmp_path / "report")]) == 0
    path = tmp_path / "report" / "comparison.json"
    comparison = config_from_dict(read_json(path), ComparisonOfRuns, str(path))
    (gate,) = (point for point in comparison.points if point.kind == "gate")
    assert gate.label == "cascade"
    assert set(gate.gains) == {"static_table", "cascade"}
    (cascade,) = (point for point in comparison.points if point.kind == "cascade")
    gain = gate.accuracy.mean - cascade.accuracy.mean
    assert gate.gains["cascade"].mean == pytest.approx(gain)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "0.05"], "budget 0.05 % is not enough for the cheapest choice"),
        (["--budget", "inf"], "budget is inf; it must be finite"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
        (["--backbone", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(
    refusal: Callable[..., str], flags: list[str], words: str
) -> None:
    assert words in refusal(main, ["--device", "cpu", *flags])


def test_every_setting_survives_the_run_folders_yaml(tmp_path: Path) -> None:
    config = TrainCascadeConfig(backbone=tmp_path, budget=1.5)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", TrainCascadeConfig) == config
