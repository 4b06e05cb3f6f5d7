"""Measured times in ``evaluate`` and ``compare``, on runs of several cost models."""

from dataclasses import replace

import pytest

import dfs_rl
from dfs_rl import train_gumbel
from dfs_rl.backbones import default_digits
from dfs_rl.compare import main as compare_main
from dfs_rl.costs.machine import library_versions, machine_name
from dfs_rl.data import load_dataset
from dfs_rl.evaluate import main as evaluate_main
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import read_json, write_json
from tests.helpers.latencies import made_up_profile
from tests.helpers.shown import read_comparison, sentence

TINY = ["--timesteps", "400", "--budget", "60", "--training.batch-size", "32", "--device", "cpu"]
SHORT = ["--search.tables", "5"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    made = made_up_profile(default_digits().costs)
    here = replace(made, machine=machine_name("cpu"), versions=library_versions("torch"))
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    write_json(path, config_to_dict(here))
    return path


@pytest.fixture(scope="module")
def runs(profile, tmp_path_factory):
    """Runs by their cost model."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {"macs": [], "latency": ["--latency.profile", str(profile)]}
    for cost, more in flags.items():
        place = ["--run-dir", str(folder / cost)]
        assert train_gumbel.main([*TINY, "--cost", cost, *more, *place]) == 0
    return {cost: folder / cost for cost in flags}


def milliseconds(run) -> float:
    """Mean time of test images by the gate's decisions and the made-up profile."""
    model = dfs_rl.load(run)
    _, trace = model(load_dataset("digits").test.images)
    layers = sum(0.1 * (i + 1) * (1 + trace.bits[:, i]) for i in range(trace.bits.shape[1]))
    gate = 6 * 0.0625 * computed_gate_macs(model.gate) / 1000
    return 0.5 + 0.25 + gate + layers.double().mean().item()


def computed_gate_macs(gate) -> float:
    """MACs of a gate by their bits, as the profile counts them."""
    return gate.macs - gate.feature_macs + default_digits().feature_macs


def test_evaluate_takes_a_profile(runs, profile, capsys):
    run = runs["macs"]
    before = (run / "summary.json").read_bytes()
    assert evaluate_main([str(run), "--profile", str(profile), *SHORT]) == 0
    shown = capsys.readouterr()
    assert "measured ms" in shown.out
    summary = read_json(run / "summary-measured-torch.json")
    assert summary["methods"][0]["milliseconds"] == pytest.approx(milliseconds(run))
    assert (run / "summary.json").read_bytes() == before
    names = {path.name for path in (run / "plots").glob("measured-*")}
    assert {"measured-torch-accuracy.png", "measured-torch-accuracy_ms.png"} <= names
    assert evaluate_main([str(run), "--profile", str(profile), *SHORT]) == 0
    assert "have changed" in sentence(capsys)


def test_profiles_of_two_runtimes_have_their_own_files(runs, profile, tmp_path):
    run, other = runs["macs"], tmp_path / "onnx.json"
    versions = list(library_versions("onnx"))
    write_json(other, read_json(profile) | {"runtime": "onnx", "versions": versions})
    assert evaluate_main([str(run), "--profile", str(profile), *SHORT]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*measured-torch*")}
    assert evaluate_main([str(run), "--profile", str(other), *SHORT]) == 0
    assert len(before) == len(list(run.rglob("*measured-onnx*"))) == 6
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_with_the_cost_latency_has_its_times(runs, profile, capsys):
    summary = read_json(runs["latency"] / "summary.json")
    assert summary["methods"][0]["milliseconds"] == pytest.approx(milliseconds(runs["latency"]))
    assert (runs["latency"] / "plots" / "accuracy_ms.png").is_file()
    assert evaluate_main([str(runs["latency"]), "--profile", str(profile)]) == 2
    assert "the cost is latency, which has a profile" in sentence(capsys)


def test_compare_measures_finished_runs(runs, profile, tmp_path):
    report = tmp_path / "report"
    flags = ["--profile", str(profile), *SHORT, "--run-dir", str(report)]
    assert compare_main([str(runs["macs"]), *flags]) == 0
    comparison = read_comparison(report)
    (gate,) = (point for point in comparison.points if point.kind == "gate")
    assert gate.milliseconds is not None
    assert gate.milliseconds.mean == pytest.approx(milliseconds(runs["macs"]), rel=1e-5)
    assert {"pareto.png", "pareto_ms.png"} <= {file.name for file in report.iterdir()}
    assert "milliseconds_mean" in (report / "points.csv").read_text()
    assert f"--profile {profile}" in (report / "report.html").read_text()
    assert compare_main(["--resume", str(report)]) == 0


def test_compare_measures_the_gates_it_trains(profile, tmp_path):
    report = tmp_path / "report"
    flags = ["--gates", "gumbel_ff", "--seeds", "1", "--timesteps", "64", "--budgets", "60"]
    flags += ["--device", "cpu", *SHORT, "--run-dir", str(report)]
    assert compare_main(["--dataset", "digits", "--profile", str(profile), *flags]) == 0
    assert read_json(report / "comparison.json")["timing"]["calls"] == 10
    assert (report / "pareto_ms.png").is_file()


@pytest.mark.parametrize("start", [["evaluate"], ["compare"], ["compare", "--dataset", "digits"]])
def test_a_profile_of_another_machine_is_refused(runs, profile, tmp_path, start, capsys):
    other = tmp_path / "other.json"
    write_json(other, read_json(profile) | {"machine": "Abacus 1"})
    command, *flags = start
    main = evaluate_main if command == "evaluate" else compare_main
    given = flags or [str(runs["macs"])]
    report = tmp_path / "report"
    place = [] if command == "evaluate" else ["--run-dir", str(report)]
    assert main([*given, "--profile", str(other), *place]) == 2
    assert "was measured with Abacus 1" in sentence(capsys)
    assert not report.exists()
