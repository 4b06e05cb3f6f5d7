"""rl_zoo3 trains, optimizes, plays and films agents on the environment as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dfs_rl
from dfs_rl.envs import ENV_ID
from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]

pytest.importorskip("rl_zoo3", reason="rl_zoo3 is not installed")

CONFIG = Path(__file__).parents[2] / "tune_configs" / "rl_zoo3" / "ppo.yml"
PLACE = "dfs_rl-FractionalSkipping-v0"
AGENT = ["--algo", "ppo", "--env", ENV_ID, "-f", "logs"]
PACKAGE = ["--gym-packages", "dfs_rl"]
TRAIN = [*AGENT, *PACKAGE, "--conf-file", str(CONFIG), "--seed", "0", "--device", "cpu"]


def zoo(command, *arguments, cwd):
    """Run a command of rl_zoo3 in a new process and return what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", f"rl_zoo3.{command}", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    small = ["-n", "1536", "--eval-freq", "768", "--eval-episodes", "4"]
    return folder, zoo("train", *TRAIN, *small, cwd=folder)


def test_train_reports_success(trained):
    _, printed = trained
    assert "success_rate" in printed


def test_agent_becomes_a_gate(trained):
    folder, _ = trained
    saved = folder / "logs" / "ppo" / f"{PLACE}_1" / f"{PLACE}.zip"
    gate = dfs_rl.gate_from_sb3(saved, run_dir=folder / "gate")
    assert gate.load().gate.widths == (16,)
    assert gate.validation["accuracy"] > 10.0


def test_enjoy(trained):
    folder, _ = trained
    printed = zoo("enjoy", *AGENT, *PACKAGE, "-n", "60", "--no-render", cwd=folder)
    assert "10 Episodes" in printed
    assert "Success rate" in printed


def test_record_video(trained):
    """The command has no --gym-packages; it imports a module ``custom_envs`` if there is one."""
    pytest.importorskip("moviepy", reason="moviepy is not installed")
    folder, _ = trained
    (folder / "custom_envs.py").write_text("import dfs_rl\n")
    zoo("record_video", *AGENT, "-n", "12", "-o", "videos", cwd=folder)
    (video,) = (folder / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_optimize(tmp_path):
    """The seed samples few steps and epochs of an update."""
    search = ["--optimize-hyperparameters", "--n-trials", "1", "--seed", "44"]
    fast = ["-n", "300", "--n-evaluations", "1", "--eval-episodes", "2", "--no-optim-plots"]
    zoo("train", *TRAIN, *search, *fast, cwd=tmp_path)
    (report,) = tmp_path.glob("logs/ppo/report_*.csv")
    assert "COMPLETE" in report.read_text()


def test_every_environment_has_hyperparameters():
    assert set(yaml.safe_load(CONFIG.read_text())) == {ENV_ID, "dfs_rl/NetworkWide-v0"}
