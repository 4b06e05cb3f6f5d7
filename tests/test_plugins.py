"""A third-party package adds an extension of each kind and uses it everywhere."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "extending.md"
PLUGIN = Path(__file__).parent / "helpers" / "plugin"
AGENT = (
    *("--algo", "toy_ppo", "--algorithm.target-kl", "0.3", "--dataset", "toy_lights"),
    *("--timesteps", "64", "--num-envs", "16", "--reward.terms", "thrift", "0.5"),
    *("--cost", "traffic"),
)
SWEEP = """\
command: {command}
settings:
  {{dataset: toy_lights, backbone: plain, timesteps: 64, cost: traffic,
    {settings}}}
search: {{{searched}: {{uniform: [0.1, 1.0]}}}}
objective: {{name: hypervolume, reference_point: [100, 1]}}
trials: 2
"""
SWEPT = {
    "algorithm.target_kl": (
        "train_agent",
        "algo: toy_ppo, num_envs: 16, reward: {terms: [[thrift, 0.5]]}",
    ),
    "training.sharpness": ("train_gumbel", "method: toy_argmax, budget: 50"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Install the package into a folder of its own, without network access."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, folder / "source")  # the build writes into it
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    target = ("--target", str(folder / "installed"))
    command = [sys.executable, "-m", "pip", "install", *options, *target, str(source)]
    subprocess.run(command, check=True, timeout=120)
    return folder


def python(place, *arguments, code=0):
    """Run Python with the package, in the folder, and return what it prints."""
    paths = [str(place / "installed"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "file", sorted((PLUGIN / "toy_plugin").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_the_page_shows_the_tested_code(file):
    _, _, code = file.read_text().partition("\n\n")  # without its docstring
    assert code in PAGE.read_text()


@pytest.fixture(scope="module")
def backbone(place):
    python(
        place,
        *("-m", "dfs_rl.train_backbone", "--dataset", "toy_lights", "--backbone", "toy_plain"),
        *("--bits", "0", "8", "32", "--epochs", "1", "--run-dir", "plain"),
    )
    return "plain"


@pytest.fixture(scope="module")
def agent(place, backbone):
    flags = (*AGENT, "--backbone", backbone, "--run-dir", "agent")
    return python(place, "-m", "dfs_rl.train_agent", *flags)


def test_help_lists_the_extensions(place):
    for command, names in {
        "train_agent": ("toy_ppo", "traffic", "thrift"),
        "train_gumbel": ("linear", "toy_argmax", "traffic"),
        "train_static": ("toy_uniform",),
        "compare": ("toy_ppo", "gumbel_linear", "toy_argmax_linear", "static_toy_uniform"),
    }.items():
        shown = "".join(python(place, "-m", f"dfs_rl.{command}", "--help").split())
        assert [name for name in names if name not in shown] == []


def test_a_run_stores_the_extensions(place, agent):
    assert "traffic %" in agent  # the table says which cost it shows
    stored = json.loads((place / "agent" / "backbone" / "backbone.json").read_text())
    assert (stored["kind"], stored["cost_model"]) == ("toy_plain", "traffic")
    summary = json.loads((place / "agent" / "summary.json").read_text())
    assert (summary["dataset"], summary["cost_model"]) == ("toy_lights", "traffic")
    config = (place / "agent" / "config.yaml").read_text()
    assert "target_kl: 0.3" in config
    assert "thrift" in config


def test_a_comparison_trains_the_extensions(place, backbone):
    gates = ("--gates", "gumbel_linear", "toy_argmax_linear", "static_toy_uniform")
    flags = ("--dataset", "toy_lights", "--backbone", backbone, *gates)
    small = ("--seeds", "1", "--timesteps", "64", "--budgets", "50", "--cost", "traffic")
    python(place, "-m", "dfs_rl.compare", *flags, *small, "--run-dir", "compared")
    compared = json.loads((place / "compared" / "comparison.json").read_text())
    assert compared["cost_model"] == "traffic"
    gates = {}
    for run in (place / "compared" / "gates").glob("*/gate"):
        gates[run.parent.name] = json.loads((run / "gate.json").read_text())
    assert {name: (gate["kind"], gate["name"]) for name, gate in gates.items()} == {
        "gumbel_linear-seed0": ("linear", "Gumbel LINEAR"),
        "toy_argmax_linear-seed0-at-50": ("linear", "toy argmax LINEAR"),
        "static_toy_uniform-seed0-at-50": ("table", "toy uniform"),
    }
    (run,) = (place / "compared" / "gates").glob("gumbel_linear-*/")
    code = f"import dfs_rl; print(type(dfs_rl.load({str(run)!r}).gate).__name__)"
    assert python(place, "-c", code).strip() == "LinearGate"


def test_runs_of_other_cost_models_are_not_compared(place, backbone, agent):
    flags = ["--dataset", "toy_lights", "--backbone", backbone, "--timesteps", "64"]
    python(place, "-m", "dfs_rl.train_agent", *flags, "--num-envs", "16", "--run-dir", "other")
    refusal = python(place, "-m", "dfs_rl.compare", "agent", "other", code=2)
    assert "its cost model is computation, not traffic" in refusal


@pytest.mark.parametrize("searched", SWEPT)
def test_a_sweep_tunes_the_extensions(place, backbone, searched):
    command, settings = SWEPT[searched]
    sweep = SWEEP.format(command=command, settings=settings, searched=searched)
    (place / "sweep.yaml").write_text(sweep)
    flags = ("--cpus", "1", "--retrain-seeds", "0", "--run-dir", command)
    python(place, "-m", "dfs_rl.sweep", "sweep.yaml", *flags)
    with (place / command / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert all(0.1 <= float(row[searched]) <= 1 for row in rows)
