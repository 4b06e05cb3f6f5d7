"""Command ``sweep`` from end to end, on Ray."""

import csv
import json
import math
from pathlib import Path

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.sweep import main
from dfs_rl.utils.config import load_config
from dfs_rl.utils.yaml_core import read_yaml

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(300)]

TINY = """\
command: train_agent
settings: {timesteps: 384, num_envs: 32, eval_every: 96}
search:
  reward.log_likelihood: {uniform: [0, 1]}
  cost_weight_range.1: {loguniform: [10, 100]}
objective: {name: hypervolume, reference_point: [20, 1], last: 2}
trials: 2
retrain: {best: 1, seeds: 2}
"""


def sweep(tmp_path, text, *flags):
    file = tmp_path / "tiny.yaml"
    file.write_text(text)
    run = tmp_path / "run"
    return main([str(file), "--run-dir", str(run), *flags]), run


def table(run):
    with (run / "results.csv").open() as lines:
        return list(csv.DictReader(lines))


def best_row(run):
    """Return the folder and the results of the best trial."""
    (best,) = (run / "best").iterdir()
    (row,) = (row for row in table(run) if row["trial"] == best.name)
    return best / "seed0", row


def area(points, reference_point):
    """Sum the area under the best accuracy so far, over log computation, in narrow strips."""
    total, strips = 0.0, 20_000
    low = min(cost for cost, _ in points)
    width = math.log10(reference_point[0] / low) / strips
    for strip in range(strips):
        cost = low * 10 ** ((strip + 0.5) * width)
        total += width * max(0.0, max(a for c, a in points if c <= cost) - reference_point[1])
    return total


# One finished sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_here):
    code, run = sweep(tmp_path_factory.mktemp("sweep"), TINY)
    assert code == 0
    return run


def test_results_have_every_trial(finished):
    rows = table(finished)
    assert [(row["trial"], row["status"]) for row in rows] == [
        ("001", "finished"),
        ("002", "finished"),
    ]
    weights = {float(row["reward.log_likelihood"]) for row in rows}
    assert len(weights) == 2
    assert all(0 <= weight <= 1 for weight in weights)


def test_objective_is_the_mean_of_the_last_validations(finished):
    best, row = best_row(finished)
    lines = (best / "metrics.jsonl").read_text().splitlines()
    shown = [r["points"] for r in map(json.loads, lines) if r["kind"] == "validation"]
    last = [area(points, (20.0, 1.0)) for points in shown[-2:]]
    assert float(row["hypervolume"]) == pytest.approx(sum(last) / 2, rel=1e-3)
    assert float(row["hypervolume"]) == max(float(r["hypervolume"]) for r in table(finished))


def test_best_settings_are_a_configuration(finished):
    config = load_config(finished / "best.yaml", TrainAgentConfig)
    best, row = best_row(finished)
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])
    assert config.cost_weight_range == (0.1, float(row["cost_weight_range.1"]))
    assert (config.timesteps, config.num_envs) == (384, 32)
    assert load_config(best / "config.yaml", TrainAgentConfig).reward == config.reward


def test_best_and_defaults_are_retrained(finished):
    best, defaults = json.loads((finished / "sweep.json").read_text())["retrained"]
    assert (best["name"], defaults["name"]) == (best_row(finished)[1]["trial"], "defaults")
    for again in (best, defaults):
        assert again["seeds"] == [1000, 1001]
        assert len(set(again["values"]["hypervolume"])) == 2
    assert defaults["settings"]["reward.log_likelihood"] == 0.5


def test_run_folder_is_complete(finished):
    assert "Fresh seeds" in (finished / "report.html").read_text()
    shown = {path.parent.parent.name for path in finished.glob("tensorboard/*/seed0/events*")}
    assert shown == {"001", "002"}
    stored = read_yaml(finished / "sweep.yaml")
    assert stored["search"]["cost_weight_range.1"] == {"loguniform": [10, 100]}
    fingerprint = json.loads((finished / "run.json").read_text())["data"]
    assert load_dataset("digits").fingerprint == fingerprint


def test_tensorboard_has_hparams_of_each_trial(finished):
    for trial in (finished / "tune" / "search").glob("trial_*"):
        (events,) = trial.glob("events*")
        assert b"reward.log_likelihood" in events.read_bytes()


def test_finished_sweep_resumes_unchanged(finished, capsys):
    best, _ = best_row(finished)
    (best / "note.txt").write_text("mine")
    before = {path: path.read_text() for path in (finished / "results.csv", finished / "best.yaml")}
    assert main(["--resume", str(finished)]) == 0
    assert {path: path.read_text() for path in before} == before
    assert (best / "note.txt").read_text() == "mine"
    assert "2 finished" in capsys.readouterr().out


# Other sweeps


def test_failed_trial_does_not_stop_the_others(tmp_path, capsys):
    text = """\
command: train_agent
settings: {timesteps: 96, num_envs: 32}
search:
  num_envs: {grid: [32, 40]}
  group_size: {grid: [8, 16]}  # 16 does not divide 40; each value alone is valid
searcher: random
trials: 4
retrain: {seeds: 0}
"""
    code, run = sweep(tmp_path, text)
    assert code == 0
    rows = {(row["num_envs"], row["group_size"]): row for row in table(run)}
    failed = rows.pop(("40", "16"))
    assert failed["status"] == "failed"
    reason = "num_envs is 40 and group_size is 16"
    assert reason in failed["reason"]
    assert {row["status"] for row in rows.values()} == {"finished"}
    shown = capsys.readouterr()
    assert reason in shown.out
    assert f"failed: {reason}" in shown.err


@pytest.mark.parametrize(("scheduler", "kind"), [("pbt", "loguniform"), ("pb2", "uniform")])
def test_populations_copy_weights(tmp_path, capfd, scheduler, kind):
    # There are more trials than cores, so that trials alternate at every interval.
    text = f"""\
command: train_agent
settings: {{timesteps: 768, num_envs: 32, eval_every: 96}}
search:
  algorithm.learning_rate: {{{kind}: [0.0001, 0.05]}}
  reward.log_likelihood: {{uniform: [0, 1]}}
objective: {{name: hypervolume, reference_point: [20, 1], last: 1}}
searcher: random
scheduler: {{name: {scheduler}, interval: 0.25}}
trials: 3
retrain: {{seeds: 0}}
"""
    code, run = sweep(tmp_path, text)
    assert code == 0
    assert {row["status"] for row in table(run)} == {"finished"}
    stored = [sorted(t.glob("checkpoint_*")) for t in (run / "tune/search").glob("trial_*")]
    pasts = {(s[-1] / "seed0/metrics.jsonl").read_text().splitlines()[0] for s in stored}
    assert len(pasts) < len(stored) == 3  # one trial has the past of another
    # Another trial may start from any checkpoint.
    assert all(
        path.name == f"checkpoint_{i:06d}" for paths in stored for i, path in enumerate(paths)
    )
    assert "Warning" not in capfd.readouterr().err
    best, row = best_row(run)
    config = load_config(best / "config.yaml", TrainAgentConfig)
    assert config.algorithm.learning_rate == float(row["algorithm.learning_rate"])
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])


def test_two_sweeps_share_a_storage_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("tiny.yaml")
    text = TINY.replace("trials: 2", "trials: 1").replace("seeds: 2", "seeds: 0")
    file.write_text(text.replace("timesteps: 384", "timesteps: 96"))
    for parent, weight in (("a", "0.1"), ("b", "0.9")):
        flags = ["--set", f"reward.accuracy={weight}", "--storage-path", "shared"]
        assert main([str(file), "--run-dir", f"{parent}/run", *flags]) == 0
    for parent, weight in (("a", 0.1), ("b", 0.9)):
        (config,) = Path(parent).glob("run/best/001/seed0/config.yaml")
        assert load_config(config, TrainAgentConfig).reward.accuracy == weight
    assert len(list(Path("shared").iterdir())) == 2
    before = Path("a/run/results.csv").read_text()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # a relative storage path still works
    assert main(["--resume", "../a/run"]) == 0
    assert Path("../a/run/results.csv").read_text() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing.yaml"], "missing.yaml does not exist"),
        (["{file}", "--set", "timesteps"], "--set timesteps is no setting; write NAME=VALUE"),
        (["{file}", "--set", "timestep=3"], "timestep is not a setting; the closest one is times"),
        (["{file}", "--set", "timesteps=x"], "the given flags: timesteps is 'x'; allowed is a who"),
        (["{file}", "--retrain-seeds", "-1"], "retrain_seeds is -1; it must be at least 0"),
        (["{file}", "--storage-path", "foo://bar"], "storage_path leads to foo://bar/sweep-"),
        (["big.yaml"], "resources.cpus is 9, but the largest node here has 2"),
        (["{file}", "--trials", "0"], "trials is 0; it must be at least 1"),
        (["{file}", "--set", "dataset=/nowhere"], "/nowhere"),
        (["{file}", "--set", "dataset=digits", "--set", "backbone=x"], "x/backbone.json"),
    ],
)
def test_invalid_input_is_refused(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    Path("big.yaml").write_text(TINY + "resources: {cpus: 9}\n")
    assert main([flag.format(file="tiny.yaml") for flag in flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not Path("runs").exists()
