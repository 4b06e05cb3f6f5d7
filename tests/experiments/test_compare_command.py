"""The command ``compare`` on real runs, and its errors."""

import shutil
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest

from dfs_rl import train_gumbel
from dfs_rl.compare import main as compare_main
from dfs_rl.experiments import comparison
from dfs_rl.utils.io import read_json, write_json
from dfs_rl.utils.run_folder import RunFolder
from tests.helpers.shown import read_comparison, sentence

TINY = ["--timesteps", "400", "--budget", "5", "--training.batch-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for name, flags in (("s0", []), ("s1", ["--seed", "1"]), ("dfs", ["--method", "dfs"])):
        made.append(folder / name)
        assert train_gumbel.main([*TINY, *flags, "--run-dir", str(made[-1])]) == 0
    return made


def test_finished_runs_become_a_report(tmp_path, runs, capsys):
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    report = tmp_path / "report"
    assert compare_main([*map(str, runs), "--run-dir", str(report)]) == 0
    shown = capsys.readouterr()
    assert "Recommended on val" in shown.out
    assert str(report / "report.html") in shown.err
    # Evaluated once, when they were trained.
    assert [(run / "summary.json").stat().st_mtime_ns for run in runs] == before
    comparison = read_comparison(report)
    gates = {point.label: point for point in comparison.points if point.kind == "gate"}
    assert set(gates) == {"Gumbel FF", "DFS FF"}
    accuracies = [read_json(run / "summary.json")["methods"][0]["accuracy"] for run in runs]
    assert gates["Gumbel FF"].seeds == (0, 1)
    assert gates["Gumbel FF"].accuracy.mean == pytest.approx(sum(accuracies[:2]) / 2, rel=1e-5)
    assert gates["DFS FF"].accuracy.mean == pytest.approx(accuracies[2], rel=1e-5)
    page = (report / "report.html").read_text()
    assert page.count("<img") == 2 + 2 * 2
    assert f"--run-dir {runs[1]}" in page
    assert {"pareto.png", "points.csv", "config.yaml"} <= {p.name for p in report.iterdir()}
    assert RunFolder.open(report).kind == "compare"


def test_run_without_stored_results_is_evaluated(tmp_path, runs, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "outcomes.safetensors").unlink()
    assert compare_main([str(run), "--run-dir", str(tmp_path / "report")]) == 0
    assert "baseline static_table" in capsys.readouterr().err
    assert not (run / "outcomes.safetensors").exists()
    assert (tmp_path / "report" / "evaluations" / "1" / "outcomes.safetensors").is_file()


def contents(folders: list[Path]) -> dict[Path, tuple[str, int]]:
    return {
        path: (sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_runs_that_are_compared_are_left_as_they_are(tmp_path, runs):
    for run in runs:
        (run / ".lock").unlink(missing_ok=True)
    before, report = contents(runs), tmp_path / "report"
    flags = ["--search.tables", "5", "--split", "val", "--run-dir", str(report)]
    assert compare_main([*map(str, runs), *flags]) == 0
    assert contents(runs) == before
    stored = contents([report / "evaluations"])
    assert {path.parent.name for path in stored if path.suffix == ".json"} == {"1", "2", "3"}
    assert (report / "report.html").read_text().count("<img") == 2 + 2 * 2
    assert compare_main(["--resume", str(report)]) == 0
    assert contents(runs) == before
    assert contents([report / "evaluations"]) == stored


@pytest.mark.parametrize("begun", [False, True])
def test_interruption_says_how_to_go_on(tmp_path, runs, capsys, monkeypatch, begun):
    report = tmp_path / "report"

    def interrupt(*_, store, **__):
        with store() if begun else nullcontext():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "evaluate_run", interrupt)
        assert compare_main([str(runs[0]), "--run-dir", str(report)]) == 130
    said = sentence(capsys)
    if begun:
        assert said.endswith(f"continue with: python -m dfs_rl.compare --resume {report}")
        assert compare_main(["--resume", str(report)]) == 0
    else:
        assert said == "Interrupted before anything was stored; run the command again."
        assert not report.exists()


def test_a_comparison_inside_a_run_is_refused(runs, capsys):
    inside = runs[0] / "comparison"
    assert compare_main([str(runs[0]), "--run-dir", str(inside)]) == 2
    assert str(inside) in sentence(capsys)
    assert not inside.exists()


def test_runs_of_two_data_sets_are_refused_before_any_evaluation(tmp_path, runs, capsys):
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    for run in ("summary.json", "outcomes.safetensors"):
        (other / run).unlink()
    structure = read_json(other / "backbone" / "backbone.json")
    structure["info"] |= {"dataset": "mnist5k", "fingerprint": 16 * "0"}
    write_json(other / "backbone" / "backbone.json", structure)
    report = tmp_path / "report"
    assert compare_main([str(runs[1]), str(other), "--run-dir", str(report)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1  # nothing has run
    assert f"{other} cannot be compared with {runs[1]}" in said
    assert "'mnist5k', not 'digits'" in said
    structure["info"]["dataset"] = "digits"
    write_json(other / "backbone" / "backbone.json", structure)
    assert compare_main([str(other), str(runs[1]), "--run-dir", str(report)]) == 2
    assert f"'digits' ({16 * '0'})" in sentence(capsys)
    assert not report.exists()


def test_unreadable_gate_does_not_lose_the_others(tmp_path, runs, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    (broken / "gate" / "gate.safetensors").write_bytes(b"no tensors")
    report = tmp_path / "report"
    assert compare_main([str(broken), str(runs[2]), "--run-dir", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "DFS FF" in shown
    assert f"Failed: {broken}: " in shown
    assert str(broken) in (report / "report.html").read_text()
    assert compare_main([str(broken), "--run-dir", str(tmp_path / "other")]) == 2
    assert "none of the runs can be evaluated" in sentence(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "runs"),
        (["--backbone", "."], "no data set is given, and backbone is for gates that are"),
        (["--gates", "ppo"], "name with --dataset what to train them on"),
        (["{0}", "{0}"], "more than once; each counts once"),
        (["{0}", "--backbone", "."], "backbone is ., which is for gates that are trained"),
        (["{0}", "--weights", "."], "weights is ., which is for gates that are trained"),
        (["--dataset", "digits", "--weights", "."], "weights go with a constructor"),
        (["{0}", "--seeds", "5"], "seeds is 5, which is for gates that are trained"),
        (["{0}", "--seeds", "3"], "seeds is 3, which is for gates that are trained"),
        (["{0}", "--timesteps=6e5"], "timesteps is 600000, which is for gates that are trained"),
        (["--dataset", "digits", "--backbone", "nowhere"], "nowhere"),
        (["--dataset", "digits", "--budgets", "1", "1"], "budgets has 1.0 more than once"),
        (["--dataset", "digits", "--budgets", "-1"], "budgets[0] is -1.0; it must be above 0"),
        (["--dataset", "digits", "--seeds", "0"], "seeds is 0; it must be at least 1"),
        (["--dataset", "digits", "--gates", "sarsa"], "sarsa"),
        (["--dataset", "digits", "--agent", "no/file.yaml"], "no/file.yaml"),
        (["nowhere"], "RUNS: nowhere does not exist"),
        (["{0}", "--threads", "0"], "threads is 0"),
        (["{0}", "--run-dir", "{0}"], "holds a run already"),
        (["{0}", "--dataset", "no/such"], "no/such"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    runs, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    assert compare_main([argument.format(runs[0]) for argument in arguments]) == 2
    assert words in sentence(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"best_on_val": {}, "points_on_val": [], "images_seen": {"gate": "9"}}', "images_seen"),
        ('{"best_on_val": {}, "points_on_val": [1], "images_seen": {}}', "points_on_val"),
        ("3", "not a mapping"),
    ],
)
def test_run_with_a_damaged_record_is_named(tmp_path, runs, capsys, content, named):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "training.json").write_text(content)
    capsys.readouterr()
    assert compare_main([str(run), "--run-dir", str(tmp_path / "report")]) == 2
    error = sentence(capsys)
    assert str(run / "training.json") in error
    assert named in error
