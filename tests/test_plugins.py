"""A third-party package adds an extension of each kind and uses it everywhere."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "extending.md"
PLUGIN = Path(__file__).parent / "helpers" / "plugin"
SMALL = "--dataset toy_lights --backbone plain --timesteps 64"
COMMANDS = {
    "help of train_agent": "train_agent --help",
    "help of train_gumbel": "train_gumbel --help",
    "help of train_static": "train_static --help",
    "help of compare": "compare --help",
    "plain": "train_backbone --dataset toy_lights --backbone toy_plain --bits 0 8 32 --epochs 1",
    "agent": f"train_agent {SMALL} --num-envs 16 --passes 1 --start indifferent --algo toy_ppo "
    "--algorithm.target-kl 0.3 --reward.terms thrift 0.5 --cost traffic",
    "other": "train_static --dataset toy_lights --backbone plain --method toy_uniform --budget 50",
    "compared": f"compare {SMALL} --gates gumbel_linear toy_argmax_linear static_toy_uniform "
    "--seeds 1 --budgets 50 --cost traffic",
    "two cost models": "compare agent other",
    "swept_agent": "sweep train_agent.yaml --retrain-seeds 0",
    "swept_gumbel": "sweep train_gumbel.yaml --retrain-seeds 0",
}
"""Commands by the folder that they write, if they do."""
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path

from dfs_rl import load
from dfs_rl.__main__ import main
from dfs_rl.utils.ray import start_ray

results = {}
with start_ray(cpus=1):
    for name, command in json.loads(sys.argv[1]).items():
        shown = io.StringIO()
        folder = ["--run-dir", name] if name.isidentifier() else []
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = main([*command.split(), *folder])
        results[name] = code, shown.getvalue()
(run,) = Path("compared/gates").glob("gumbel_linear-*/")
print(json.dumps([results, type(load(run).gate).__name__]))
"""
SWEEP = """\
command: {command}
settings:
  {{dataset: toy_lights, backbone: plain, timesteps: 64, cost: traffic, {settings}}}
search: {{{searched}: {{uniform: [0.1, 1.0]}}}}
objective: {{name: hypervolume, reference_point: [100, 1]}}
trials: 1
"""
SWEPT = {
    "train_agent": (
        "algorithm.target_kl",
        "algo: toy_ppo, num_envs: 16, start: indifferent, reward: {terms: [[thrift, 0.5]]}",
    ),
    "train_gumbel": ("training.sharpness", "method: toy_argmax, budget: 50"),
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


@pytest.fixture(scope="module")
def results(place):
    """Run all commands in a process that has the package, and return codes and outputs."""
    for command, (searched, settings) in SWEPT.items():
        sweep = SWEEP.format(command=command, settings=settings, searched=searched)
        (place / f"{command}.yaml").write_text(sweep)
    paths = [str(place / "installed"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found, kind = json.loads(done.stdout.splitlines()[-1])
    codes = {name: code for name, (code, _) in found.items() if code}
    assert codes == {"two cost models": 2}, found
    return {name: output for name, (_, output) in found.items()} | {"loaded": kind}


@pytest.mark.parametrize(
    "file", sorted((PLUGIN / "toy_plugin").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_the_page_shows_the_tested_code(file):
    _, _, code = file.read_text().partition("\n\n")  # without its docstring
    assert code in PAGE.read_text()


def test_help_lists_the_extensions(results):
    for command, names in {
        "train_agent": ("toy_ppo", "traffic", "thrift"),
        "train_gumbel": ("linear", "toy_argmax", "traffic"),
        "train_static": ("toy_uniform",),
        "compare": ("toy_ppo", "gumbel_linear", "toy_argmax_linear", "static_toy_uniform"),
    }.items():
        shown = "".join(results[f"help of {command}"].split())
        assert [name for name in names if name not in shown] == []


def test_a_run_stores_the_extensions(place, results):
    assert "traffic %" in results["agent"]  # the table says which cost it shows
    stored = json.loads((place / "agent" / "backbone" / "backbone.json").read_text())
    assert (stored["kind"], stored["cost_model"]) == ("toy_plain", "traffic")
    summary = json.loads((place / "agent" / "summary.json").read_text())
    assert (summary["dataset"], summary["cost_model"]) == ("toy_lights", "traffic")
    config = (place / "agent" / "config.yaml").read_text()
    assert "target_kl: 0.3" in config
    assert "thrift" in config


def test_a_comparison_trains_the_extensions(place, results):
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
    assert results["loaded"] == "LinearGate"


def test_runs_of_other_cost_models_are_not_compared(results):
    assert "its cost model is computation, not traffic" in results["two cost models"]


@pytest.mark.parametrize("command", SWEPT)
def test_a_sweep_tunes_the_extensions(place, results, command):
    searched, _ = SWEPT[command]
    with (place / command.replace("train", "swept") / "results.csv").open() as lines:
        (row,) = csv.DictReader(lines)
    assert row["status"] == "finished"
    assert 0.1 <= float(row[searched]) <= 1
