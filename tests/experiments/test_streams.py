"""Streams of mixed difficulty, from the training of gates to their comparison."""

import pytest

import dfs_rl
from dfs_rl import train_cascade
from dfs_rl.backbones import default_digits, load_stored_backbone
from dfs_rl.compare import main as compare_main
from dfs_rl.data import load_dataset
from dfs_rl.errors import DataError
from dfs_rl.evaluate import main as evaluate_main
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.utils.io import read_json
from dfs_rl.utils.yaml_core import read_yaml
from tests.helpers.shown import read_comparison


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Cascades that were tuned on clean images and on a stream."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("none", "mixed"):
        flags = ["--budget", "0.9", "--passes", "2", "--answer", "last", "--corruptions", name]
        flags += ["--stopping", "confidence"]
        assert train_cascade.main([*flags, "--run-dir", str(folder / name)]) == 0
    return {name: folder / name for name in ("none", "mixed")}


def full_accuracy(corruptions):
    images = load_dataset("digits", corruptions=corruptions).test
    frozen = default_digits().to_inference()
    table = (len(frozen.options) - 1,) * frozen.costs.n_layers
    return evaluate_static_table(frozen, images, table, name="full").accuracy


def reported(path):
    summary = read_json(path)
    (full,) = [m["accuracy"] for m in summary["methods"] if m["key"] == "full"]
    return summary["dataset"], full


def test_gate_is_tuned_and_reported_on_its_stream(runs):
    for name, run in runs.items():
        assert read_yaml(run / "config.yaml")["corruptions"] == name
        assert load_stored_backbone(run).info.fingerprint == load_dataset("digits").fingerprint
        named = "digits" if name == "none" else f"digits-{name}"
        expected = (named, pytest.approx(full_accuracy(name)))
        assert reported(run / "summary.json") == expected
        assert dfs_rl.evaluate(run).stored  # on the stream of the run, in the run's folder
    assert full_accuracy("mixed") < full_accuracy("none")


def test_gate_can_be_evaluated_on_another_stream(runs):
    flags = ["--corruptions", "mixed", "--search.tables", "5"]
    assert evaluate_main([str(runs["none"]), *flags]) == 0
    path = runs["none"] / "summary-mixed.json"
    assert reported(path) == ("digits-mixed", pytest.approx(full_accuracy("mixed")))
    gates = [read_json(p)["methods"][0] for p in (path, runs["mixed"] / "summary.json")]
    assert gates[0]["detail"] != gates[1]["detail"]  # the cascade of clean images


def test_runs_are_compared_on_one_stream(runs, tmp_path, capsys):
    named = [str(run) for run in runs.values()]
    assert compare_main([*named, "--run-dir", str(tmp_path / "without")]) == 2
    assert "image fingerprint" in capsys.readouterr().err
    report = tmp_path / "report"
    assert compare_main([*named, "--corruptions", "mixed", "--run-dir", str(report)]) == 0
    comparison = read_comparison(report)
    labels = {point.label for point in comparison.points if point.kind == "gate"}
    names = (f"tuned rule, 2 passes, corruptions {stream}" for stream in ("none", "mixed"))
    assert labels == set(names)
    assert "--corruptions mixed" in (report / "report.html").read_text()


def test_api_takes_a_stream(tmp_path):
    stream = load_dataset("digits", corruptions="noise")
    settings = {"method": "cascade", "budget": 0.9, "passes": 2, "run_dir": tmp_path / "gate"}
    gate = dfs_rl.train_gate(None, stream, **settings)
    config = read_yaml(gate.path / "config.yaml")
    assert (config["dataset"], config["corruptions"]) == ("digits", "noise")
    result = dfs_rl.evaluate(gate, stream, baselines=["cascade"])
    assert result.summary.fingerprint == stream.fingerprint
    assert dfs_rl.evaluate(gate, stream.clean, baselines=["cascade"]).stored
    with pytest.raises(DataError, match="has the corruptions noise, not blur"):
        dfs_rl.train_gate(None, stream, method="cascade", corruptions="blur")
