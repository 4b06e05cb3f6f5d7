"""Command ``sweep`` from end to end, on Ray."""

import contextlib
import csv
import gc
import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.evaluation.curves import CurvePoint, hypervolume
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.sweep import main
from dfs_rl.utils.config import load_config
from dfs_rl.utils.yaml_core import read_yaml
from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(300)]

# 32 does not divide 48; each value alone is valid, so one of the trials fails.
GRID = """\
command: train_agent
settings: {timesteps: 384, eval_every: 96, passes: 1, start: indifferent}
search:
  reward.log_likelihood: {uniform: [0, 1]}
  cost_weight_range.1: {loguniform: [10, 100]}
  num_envs: {grid: [32, 48]}
  group_size: {grid: [8, 32]}
searcher: random
objective: {name: hypervolume, reference_point: [20, 1], last: 2}
trials: 4
retrain: {best: 1, seeds: 2}
"""
REASON = "num_envs is 48 and group_size is 32"
ONE = """\
command: train_agent
settings: {timesteps: 96, num_envs: 32, passes: 1, start: indifferent}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 1
retrain: {seeds: 0}
"""


def sweep(folder, text, *flags):
    file, run = folder / "tiny.yaml", folder / "run"
    file.write_text(text)
    return main([str(file), "--run-dir", str(run), *flags]), run


def table(run):
    with (run / "results.csv").open() as lines:
        return list(csv.DictReader(lines))


def best_row(run):
    """Return the folder and the results of the best trial."""
    (best,) = (run / "best").iterdir()
    (row,) = (row for row in table(run) if row["trial"] == best.name)
    return best / "seed0", row


# One finished sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_here):
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        code, run = sweep(tmp_path_factory.mktemp("sweep"), GRID)
    assert code == 0
    assert f"failed: {REASON}" in shown.getvalue()
    return run


def test_results_have_every_trial(finished):
    rows = table(finished)
    assert [row["trial"] for row in rows] == ["001", "002", "003", "004"]
    assert len({row["reward.log_likelihood"] for row in rows}) == 4
    assert all(0 <= float(row["reward.log_likelihood"]) <= 1 for row in rows)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["num_envs"], row["group_size"]) for row in failed] == [("48", "32")]
    assert REASON in failed[0]["reason"]
    assert [row["status"] for row in rows].count("finished") == 3


def test_objective_is_the_mean_of_the_last_validations(finished):
    best, row = best_row(finished)
    lines = (best / "metrics.jsonl").read_text().splitlines()
    shown = [r["points"] for r in map(json.loads, lines) if r["kind"] == "validation"]
    last = [
        hypervolume([CurvePoint(*p) for p in points], reference_point=CurvePoint(20.0, 1.0))
        for points in shown[-2:]
    ]
    assert float(row["hypervolume"]) == pytest.approx(sum(last) / 2)
    values = [float(r["hypervolume"]) for r in table(finished) if r["hypervolume"]]
    assert float(row["hypervolume"]) == max(values)


def test_best_settings_are_a_configuration(finished):
    config = load_config(finished / "best.yaml", TrainAgentConfig)
    best, row = best_row(finished)
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])
    assert config.cost_weight_range == (0.1, float(row["cost_weight_range.1"]))
    assert (config.timesteps, config.num_envs) == (384, int(row["num_envs"]))
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
    assert shown == {row["trial"] for row in table(finished) if row["status"] == "finished"}
    stored = read_yaml(finished / "sweep.yaml")
    assert stored["search"]["cost_weight_range.1"] == {"loguniform": [10, 100]}
    fingerprint = json.loads((finished / "run.json").read_text())["data"]
    assert load_dataset("digits").fingerprint == fingerprint
    stored_in = {run.parent.name[:11] for run in (finished / "tune").rglob("seed0")}
    assert stored_in == {"checkpoint_"}
    for trial in (finished / "tune" / "search").glob("trial_*"):  # hyperparameters of each trial
        (events,) = trial.glob("events*")
        assert b"reward.log_likelihood" in events.read_bytes()


def test_finished_sweep_resumes_unchanged(finished, capsys):
    best, _ = best_row(finished)
    (best / "note.txt").write_text("mine")
    before = {path: path.read_text() for path in (finished / "results.csv", finished / "best.yaml")}
    assert main(["--resume", str(finished)]) == 0
    assert {path: path.read_text() for path in before} == before
    assert (best / "note.txt").read_text() == "mine"
    shown = capsys.readouterr().out
    assert "3 finished, 1 failed" in shown
    assert REASON in shown


# Other sweeps


POPULATION = """\
command: train_agent
settings: {timesteps: 768, num_envs: 32, eval_every: 96, passes: 1, start: indifferent}
search:
  algorithm.learning_rate: {uniform: [0.0001, 0.05]}
  reward.log_likelihood: {uniform: [0, 1]}
objective: {name: hypervolume, reference_point: [20, 1], last: 1}
searcher: random
scheduler: {name: pb2, interval: 0.25}
resources: {cpus: 2}  # all, so that the trials take turns
trials: 2
retrain: {seeds: 0}
"""


def test_populations_copy_weights(tmp_path, capfd):
    code, run = sweep(tmp_path, POPULATION)
    assert code == 0
    assert {row["status"] for row in table(run)} == {"finished"}
    stored = [sorted(t.glob("checkpoint_*")) for t in (run / "tune/search").glob("trial_*")]
    pasts = {(s[-1] / "seed0/metrics.jsonl").read_text().splitlines()[0] for s in stored}
    assert len(pasts) < len(stored) == 2  # one trial has the past of the other
    # Another trial may start from any checkpoint.
    assert all(
        path.name == f"checkpoint_{i:06d}" for paths in stored for i, path in enumerate(paths)
    )
    assert "Warning" not in capfd.readouterr().err
    best, row = best_row(run)
    config = load_config(best / "config.yaml", TrainAgentConfig)
    assert config.algorithm.learning_rate == float(row["algorithm.learning_rate"])
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_sweep_shares_a_storage_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("shared", "sweep-of-another").mkdir(parents=True)
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            if list(Path(tmp_path, "shared").glob("*/search/*/checkpoint_*")):
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    text = ONE.replace("timesteps: 96", "timesteps: 1152, eval_every: 96")
    code, run = sweep(tmp_path, text, "--storage-path", "shared")
    ended.set()
    watcher.join()
    assert code == 130
    gc.collect()  # of files that Tune leaves open
    assert f"continue with: python -m dfs_rl.sweep --resume {run}" in capsys.readouterr().err
    assert len(list(Path("shared").iterdir())) == 2
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # a relative storage path still works
    assert main(["--resume", "../run"]) == 0
    assert [row["status"] for row in table(run)] == ["finished"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing.yaml"], "FILE: missing.yaml does not exist"),
        (["{file}", "--set", "timesteps=x"], "the given flags: timesteps is 'x'; allowed is a who"),
        (["{file}", "--retrain-seeds", "-1"], "retrain_seeds is -1; it must be at least 0"),
        (["{file}", "--storage-path", "foo://bar"], "storage_path leads to foo://bar/sweep-"),
        (["big.yaml"], "resources.cpus is 9, but the largest node here has 2"),
        (["{file}", "--trials", "0"], "trials is 0; it must be at least 1"),
        (["{file}", "--set", "dataset=/nowhere"], "/nowhere"),
        (["{file}", "--set", "backbone=x"], "x is not a folder"),
    ],
)
def test_invalid_input_is_refused(tmp_path, refusal, flags, message):
    (tmp_path / "tiny.yaml").write_text(ONE)
    (tmp_path / "big.yaml").write_text(ONE + "resources: {cpus: 9}\n")
    flags = [flag.format(file="tiny.yaml") for flag in flags]
    assert message in refusal(main, flags)
