"""The command from end to end, on Ray."""

import csv
import json
import math
from pathlib import Path

import pytest

from dfs_rl.data import load_dataset
from dfs_rl.experiments.agent_training import TrainAgentConfig
from dfs_rl.sweep import main
from dfs_rl.utils.config import load_config, read_yaml

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(300)]

TINY = """\
command: train_agent
settings: {timesteps: 960, num_envs: 32, eval_every: 96}
search:
  reward.log_likelihood: {uniform: [0, 1]}
  cost_weight_range.1: {loguniform: [10, 100]}
objective: {name: hypervolume, reference_point: [20, 1], last: 2}
trials: 3
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


def area(points, reference_point):
    """Area under the best accuracy so far, over the logarithm of computation, added up in narrow strips."""
    total, strips = 0.0, 20_000
    low = min(cost for cost, _ in points)
    width = math.log10(reference_point[0] / low) / strips
    for strip in range(strips):
        cost = low * 10 ** ((strip + 0.5) * width)
        total += width * max(0.0, max(a for c, a in points if c <= cost) - reference_point[1])
    return total


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_here):
    code, run = sweep(tmp_path_factory.mktemp("sweep"), TINY)
    assert code == 0
    return run


def test_every_trial_is_in_the_table(finished):
    rows = table(finished)
    assert [row["trial"] for row in rows] == ["001", "002", "003"]
    assert {row["status"] for row in rows} == {"finished"}
    weights = [float(row["reward.log_likelihood"]) for row in rows]
    assert len(set(weights)) == 3
    assert all(0 <= weight <= 1 for weight in weights)


def test_the_objective_is_the_mean_area_of_the_last_validations(finished):
    rows = {row["trial"]: row for row in table(finished)}
    (best,) = (finished / "best").iterdir()
    lines = (best / "seed0" / "metrics.jsonl").read_text().splitlines()
    shown = [r["points"] for r in map(json.loads, lines) if r["kind"] == "validation"]
    last = [area(points, (20.0, 1.0)) for points in shown[-2:]]
    assert float(rows[best.name]["hypervolume"]) == pytest.approx(sum(last) / 2, rel=1e-3)
    assert float(rows[best.name]["hypervolume"]) == max(
        float(r["hypervolume"]) for r in rows.values()
    )


def test_the_best_settings_are_ready_for_the_command(finished):
    config = load_config(finished / "best.yaml", TrainAgentConfig)
    (best,) = (finished / "best").iterdir()
    (row,) = (row for row in table(finished) if row["trial"] == best.name)
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])
    assert config.cost_weight_range == (0.1, float(row["cost_weight_range.1"]))
    assert (config.timesteps, config.num_envs) == (960, 32)
    trained = load_config(best / "seed0" / "config.yaml", TrainAgentConfig)
    assert trained.reward == config.reward


def test_the_best_and_the_defaults_are_trained_on_fresh_seeds(finished):
    record = json.loads((finished / "sweep.json").read_text())
    (best,) = (finished / "best").iterdir()
    assert [again["name"] for again in record["retrained"]] == [best.name, "defaults"]
    for again in record["retrained"]:
        assert again["seeds"] == [1000, 1001]
        assert len(set(again["values"]["hypervolume"])) == 2
    assert record["retrained"][1]["settings"]["reward.log_likelihood"] == 0.5


def test_there_is_a_report_and_one_tensorboard_folder(finished):
    page = (finished / "report.html").read_text()
    assert "On fresh seeds" in page
    shown = {path.parent.parent.name for path in finished.glob("tensorboard/*/seed0/events*")}
    assert shown == {"001", "002", "003"}


def test_a_finished_sweep_that_is_gone_on_with_is_the_same(finished, capsys):
    before = {path: path.read_text() for path in (finished / "results.csv", finished / "best.yaml")}
    assert main(["--resume", str(finished)]) == 0
    assert {path: path.read_text() for path in before} == before
    assert "3 trials in" in capsys.readouterr().out


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path, capsys):
    text = """\
command: train_agent
settings: {timesteps: 192, num_envs: 32}
search:
  num_envs: {grid: [32, 40]}
  group_size: {grid: [8, 16]}  # 16 does not divide 40, which neither says alone
searcher: random
trials: 4
retrain: {seeds: 0}
"""
    code, run = sweep(tmp_path, text)
    assert code == 0
    rows = {(row["num_envs"], row["group_size"]): row for row in table(run)}
    bad = rows.pop(("40", "16"))
    assert bad["status"] == "failed"
    reason = "num_envs is 40 and group_size is 16"
    assert reason in bad["reason"]
    assert {row["status"] for row in rows.values()} == {"finished"}
    shown = capsys.readouterr()
    assert reason in shown.out
    assert f"failed: {reason}" in shown.err


@pytest.mark.parametrize(("scheduler", "kind"), [("pbt", "loguniform"), ("pb2", "uniform")])
def test_a_population_copies_weights_and_changes_settings(tmp_path, capfd, scheduler, kind):
    text = f"""\
command: train_agent
settings: {{timesteps: 1920, num_envs: 32, eval_every: 96}}
search:
  algorithm.learning_rate: {{{kind}: [0.0001, 0.05]}}
  reward.log_likelihood: {{uniform: [0, 1]}}
objective: {{name: hypervolume, reference_point: [20, 1], last: 1}}
searcher: random
scheduler: {{name: {scheduler}, interval: 0.1}}
trials: 4
retrain: {{seeds: 0}}
"""
    code, run = sweep(tmp_path, text)
    assert code == 0
    rows = table(run)
    assert {row["status"] for row in rows} == {"finished"}
    # A trial that took over another's weights has its past as well; settings alone never give the same one.
    stored = [sorted(t.glob("checkpoint_*")) for t in (run / "tune" / "search").glob("search_*")]
    last = [paths[-1] for paths in stored]
    pasts = [(path / "seed0" / "metrics.jsonl").read_text().splitlines()[:4] for path in last]
    assert len({tuple(past) for past in pasts}) < len(pasts) == 4
    # Another trial may begin from any of them, whenever its turn comes.
    assert all(
        path.name == f"checkpoint_{i:06d}" for paths in stored for i, path in enumerate(paths)
    )
    assert "Warning" not in capfd.readouterr().err
    (best,) = (run / "best").iterdir()
    (row,) = (row for row in rows if row["trial"] == best.name)
    config = load_config(best / "seed0" / "config.yaml", TrainAgentConfig)
    assert config.algorithm.learning_rate == float(row["algorithm.learning_rate"])
    assert config.reward.log_likelihood == float(row["reward.log_likelihood"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["missing.yaml"], "missing.yaml does not exist"),
        (["{file}", "--set", "timesteps"], "--set timesteps is no setting; write NAME=VALUE"),
        (
            ["{file}", "--set", "timestep=3"],
            "timestep is not a setting; the closest one is timesteps",
        ),
        (
            ["{file}", "--set", "timesteps=x"],
            "flags beside it: timesteps is 'x'; allowed is a whole",
        ),
        (["{file}", "--retrain-seeds", "-1"], "retrain_seeds is -1; it must be at least 0"),
        (["{file}", "--storage-path", "foo://bar"], "storage_path leads to foo://bar/sweep-"),
        (["big.yaml"], "resources.cpus is 9, but the largest node here has 2"),
        (["{file}", "--trials", "0"], "trials is 0; it must be at least 1"),
        (["{file}", "--set", "dataset=/nowhere"], "/nowhere"),
        (["{file}", "--set", "dataset=digits", "--set", "backbone=x"], "x/backbone.json"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_no_folder(tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    Path("big.yaml").write_text(TINY + "resources: {cpus: 9}\n")
    assert main([flag.format(file="tiny.yaml") for flag in flags]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_what_was_added_to_the_best_run_stays(finished):
    (best,) = (finished / "best").iterdir()
    note = best / "seed0" / "note.txt"
    note.write_text("mine")
    assert main(["--resume", str(finished)]) == 0
    assert note.read_text() == "mine"


def test_two_sweeps_may_share_a_storage_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("tiny.yaml")
    file.write_text(TINY.replace("trials: 3", "trials: 1").replace("seeds: 2", "seeds: 0"))
    for parent, weight in (("a", "0.1"), ("b", "0.9")):
        flags = ["--set", f"reward.accuracy={weight}", "--storage-path", "shared"]
        assert main([str(file), "--run-dir", f"{parent}/run", *flags]) == 0
    for parent, weight in (("a", 0.1), ("b", 0.9)):
        (config,) = Path(parent).glob("run/best/001/seed0/config.yaml")
        assert load_config(config, TrainAgentConfig).reward.accuracy == weight
    assert len(list(Path("shared").iterdir())) == 2
    before = Path("a/run/results.csv").read_text()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # what was a relative path is found again
    assert main(["--resume", "../a/run"]) == 0
    assert Path("../a/run/results.csv").read_text() == before


def test_a_sweep_keeps_what_it_was_asked_for(finished):
    kept = read_yaml(finished / "sweep.yaml")
    assert kept["search"]["cost_weight_range.1"] == {"loguniform": [10, 100]}
    assert (
        load_dataset("digits").fingerprint
        == json.loads((finished / "run.json").read_text())["data"]
    )
