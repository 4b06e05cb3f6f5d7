"""rl_zoo3 trains, optimizes, plays and films agents on the environment, by the page's commands."""

import shlex
import subprocess
import sys

import pytest
import yaml

from dfs_rl.envs import ENV_ID, NETWORK_WIDE_ID
from tests.helpers.pages import DOCS, recipe, run_recipe

pytest.importorskip("rl_zoo3", reason="rl_zoo3 is not installed")

CONFIG = "tune_configs/rl_zoo3/ppo.yml"
FAST = ["--seed", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    (path / "tune_configs").symlink_to(DOCS.parent / "tune_configs")
    return path


def zoo(name, *extra, cwd):
    """Run the page's first command that contains ``name``, with other flags too."""
    line = next(line for line in recipe("rl_zoo3", "bash").splitlines() if name in line)
    run = subprocess.run(
        [sys.executable, *shlex.split(line)[1:], *extra],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def trained(folder):
    small = ["-n", "1536", "--eval-freq", "768", "--eval-episodes", "4"]
    return zoo("rl_zoo3.train", *FAST, *small, cwd=folder)


def test_train_reports_success(trained):
    assert "success_rate" in trained


def test_agent_becomes_a_gate(trained, folder, monkeypatch):
    monkeypatch.chdir(folder)
    gate = run_recipe("rl_zoo3")["gate"]
    assert gate.load().gate.widths == (16,)
    assert gate.validation["accuracy"] > 10.0


def test_enjoy(trained, folder):
    printed = zoo("rl_zoo3.enjoy", "-n", "60", cwd=folder)
    assert "10 Episodes" in printed
    assert "Success rate" in printed


def test_record_video(trained, folder):
    pytest.importorskip("moviepy", reason="moviepy is not installed")
    (folder / "custom_envs.py").write_text("import dfs_rl\n")
    zoo("rl_zoo3.record_video", "-n", "12", "-o", "videos", cwd=folder)
    (video,) = (folder / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_optimize(folder):
    """The seed samples few steps and epochs of an update."""
    fast = ["-n", "300", "--n-evaluations", "1", "--eval-episodes", "2", "--no-optim-plots"]
    once = ["--n-trials", "1", "--seed", "44", "--log-folder", "search"]
    zoo("--optimize-hyperparameters", *FAST, *fast, *once, cwd=folder)
    (report,) = folder.glob("search/ppo/report_*.csv")
    assert "COMPLETE" in report.read_text()


def test_every_environment_has_hyperparameters():
    assert set(yaml.safe_load((DOCS.parent / CONFIG).read_text())) == {ENV_ID, NETWORK_WIDE_ID}
