"""Comparisons that train gates: equal settings, one training each, isolated failures."""

import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from dfs_rl import train_gumbel
from dfs_rl.agents.supervised.config import DFSConfig, GumbelConfig
from dfs_rl.backbones import load_backbone
from dfs_rl.compare import main as compare_main
from dfs_rl.errors import BusyError, ConfigError
from dfs_rl.evaluation.budgets import exceeds_budget
from dfs_rl.evaluation.comparison_records import Point
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.benchmark import distribute_jobs, load_extra_settings, plan_jobs
from dfs_rl.experiments.comparison_config import CompareConfig, gate_specs
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.search_config import TrainStaticConfig
from dfs_rl.gating.storage import load_gate
from dfs_rl.train_backbone import main as train_backbone_main
from dfs_rl.utils.io import OnWait
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.trusted_import import call_constructor, trust_constructor
from tests.helpers.custom_models import write
from tests.helpers.shown import read_comparison

AGENT = "num_envs: 32\nprecision: float32\npasses: 1\n"
GUMBEL = "training:\n  batch_size: 32\n"
SHORT = ("--search.tables", "4")


class Contest(NamedTuple):
    """Folder of a comparison, and what it printed."""

    folder: Path
    shown: str


def figures(shown: str) -> list[str]:
    """Everything but the table of how long training took."""
    return [part for part in shown.split("\n\n") if "trainings" not in part]


def jobs(folder: Path, *gates: str, extra=None, **changes) -> dict[str, Any]:
    """Configurations of the trainings of a comparison, by the names of their folders."""
    settings = {"seeds": 2, "timesteps": 1000, "device": "cpu", "budgets": (1.5, 0.75, 3.0)}
    config = CompareConfig(
        dataset="digits", gates=gates or tuple(gate_specs()), **(settings | changes)
    )
    planned = plan_jobs(config, extra or {}, folder)
    assert all(job.run_dir is not None and job.run_dir.parent == folder for job in planned)
    by_name = {job.run_dir.name: job for job in planned if job.run_dir is not None}
    assert len(by_name) == len(planned)
    return by_name


def test_gates_learn_from_equally_many_images(tmp_path):
    seen: Counter[tuple[str, int]] = Counter()
    for name, job in jobs(tmp_path).items():
        if "static" not in name:  # those count tables
            seen[name.split("-seed")[0], job.seed] += job.timesteps
    names = [name for name in gate_specs() if not name.startswith("static")]
    assert seen == {(name, seed): 3000 for name in names for seed in (0, 1)}


def test_each_gate_is_what_its_name_says(tmp_path):
    by_name = jobs(tmp_path, seeds=1)
    assert isinstance(by_name["a2c-seed0"], TrainAgentConfig)
    assert by_name["a2c-seed0"].algo == "a2c"
    gumbel = by_name["gumbel_lstm-seed0"]
    assert isinstance(gumbel, TrainGumbelConfig)
    assert (gumbel.method, gumbel.gate, gumbel.budgets) == ("gumbel", "lstm", (0.75, 3.0))
    assert {name for name in by_name if name.startswith("dfs_ff")} == {
        "dfs_ff-seed0-at-1.5",
        "dfs_ff-seed0-at-0.75",
        "dfs_ff-seed0-at-3",
    }
    masked = by_name["maskable_ppo-seed0-at-3"]
    assert (masked.algo, masked.per_input_budget, masked.budget) == ("maskable_ppo", 3.0, None)
    table = by_name["static_greedy-seed0-at-0.75"]
    assert isinstance(table, TrainStaticConfig)
    assert (table.method, table.budget) == ("greedy", 0.75)
    skipnet, blockdrop = by_name["skipnet_lstm-seed0-at-3"], by_name["blockdrop-seed0-at-0.75"]
    assert (skipnet.method, skipnet.gate, skipnet.budget) == ("skipnet", "lstm", 3.0)
    assert (blockdrop.method, blockdrop.budget, blockdrop.budgets) == ("blockdrop", 0.75, None)
    dfs = by_name["dfs_ff-seed0-at-1.5"]
    assert (dfs.method, dfs.gate, dfs.budget, dfs.budgets) == ("dfs", "ff", 1.5, None)


def test_all_gates_have_one_seed_before_any_has_two(tmp_path):
    seeds = [job.seed for job in jobs(tmp_path).values()]
    assert seeds == sorted(seeds)


def test_a_search_that_draws_nothing_is_made_once(tmp_path):
    assert list(jobs(tmp_path, "static_greedy", "static_ddpg", seeds=3, budgets=(1.0,))) == [
        "static_greedy-seed0-at-1",
        *(f"static_ddpg-seed{seed}-at-1" for seed in range(3)),
    ]


def test_a_block_serves_several_methods(tmp_path):
    file = tmp_path / "gumbel.yaml"
    file.write_text("training: {batch_size: 32}\n")
    given = {"train_gumbel": load_extra_settings(file, TrainGumbelConfig)}
    found = jobs(tmp_path, "gumbel_ff", "dfs_ff", seeds=1, extra=given).values()
    assert {type(job.training) for job in found} == {GumbelConfig, DFSConfig}
    assert {job.training.batch_size for job in found} == {32}


def test_settings_of_one_method_reach_only_that_method(tmp_path):
    file = tmp_path / "gumbel.yaml"
    file.write_text("val_repeats: 2\nskipnet: {ent_coef: 0.1}\nblockdrop: {bound: 0.9}\n")
    given = {"train_gumbel": load_extra_settings(file, TrainGumbelConfig)}
    names = ("gumbel_ff", "dfs_ff", "skipnet_ff", "blockdrop")
    made = jobs(tmp_path, *names, seeds=1, budgets=(1.0,), extra=given)
    found = {name.partition("-")[0]: job for name, job in made.items()}
    assert {name: job.skipnet.ent_coef for name, job in found.items()} == {
        **dict.fromkeys(names, 0.3),
        "skipnet_ff": 0.1,
    }
    assert {name: job.blockdrop.bound for name, job in found.items()} == {
        **dict.fromkeys(names, 0.8),
        "blockdrop": 0.9,
    }
    assert {name: job.val_repeats for name, job in found.items()} == {
        **dict.fromkeys(names, 1),
        "gumbel_ff": 2,
    }
    agent = {"train_agent": {"val_repeats": 3}}
    made = jobs(tmp_path, "ppo", "maskable_ppo", seeds=1, budgets=(1.0,), extra=agent)
    assert [job.val_repeats for job in made.values()] == [3, 1]


def test_extra_settings_reach_only_their_gates(tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text("algorithm: {n_epochs: 2}\n")
    given = {"train_agent": load_extra_settings(file, TrainAgentConfig)}
    agent, gumbel = jobs(tmp_path, "ppo", "gumbel_ff", seeds=1, extra=given).values()
    assert agent.algorithm.n_epochs == 2
    assert gumbel == TrainGumbelConfig(
        seed=0,
        device="cpu",
        timesteps=3000,
        budget=0.75,
        budgets=(0.75, 3.0),
        run_dir=tmp_path / "gumbel_ff-seed0",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: 3\n", "agent.yaml sets seed, which a comparison sets"),
        ("algo: a2c\n", "agent.yaml sets algo, which a comparison sets"),
        ("num_envs: 100\ngroup_size: 8\n", "agent.yaml: num_envs is 100"),
        ("speed: 3\n", "speed"),
    ],
)
def test_unsuitable_extra_settings_are_refused(tmp_path, content, words):
    file = tmp_path / "agent.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_extra_settings(file, TrainAgentConfig)


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """A comparison that trained three kinds of gates, and its output."""
    folder = tmp_path_factory.mktemp("contest")
    (folder / "agent.yaml").write_text(AGENT)
    # From no preference at all, nothing is learned in 200 steps, least of all to spend little.
    (folder / "gumbel.yaml").write_text(GUMBEL + "start: indifferent\n")
    flags = ["--dataset", "digits", "--budgets", "1.5", "90", "--seeds", "1", "--timesteps", "200"]
    flags += ["--gates", "ppo", "gumbel_ff", "dfs_lstm", "--device", "cpu"]
    flags += ["--agent", str(folder / "agent.yaml"), "--gumbel", str(folder / "gumbel.yaml")]
    with redirect_stdout(StringIO()) as shown:
        assert compare_main([*flags, *SHORT, "--run-dir", str(folder / "run")]) == 0
    for name in ("agent.yaml", "gumbel.yaml"):
        (folder / name).unlink()  # the comparison has its own copy
    return Contest(folder / "run", shown.getvalue())


def gates_of(folder: Path) -> list[Point]:
    return [point for point in read_comparison(folder).points if point.kind == "gate"]


def budget_range_of(run: Path) -> tuple[float, float]:
    conditioning = load_gate(run / "gate").budget_conditioning
    assert conditioning is not None
    return conditioning.budget_range


def test_comparison_trains_and_reports_failures(contest):
    # The LSTM costs more than 1.5 % of this small network.
    assert "Failed: dfs_lstm-seed0-at-1.5: budget is 1.5 %, too little" in contest.shown
    runs = {path.name for path in (contest.folder / "gates").iterdir() if path.is_dir()}
    assert runs == {"ppo-seed0", "gumbel_ff-seed0", "dfs_lstm-seed0-at-90"}
    assert len({gate.label for gate in gates_of(contest.folder) if gate.budget == 90.0}) == 3
    assert "dfs_lstm-seed0-at-1.5" in (contest.folder / "report.html").read_text()


def test_comparison_resumes_after_moves_and_lost_files(contest, tmp_path, capsys):
    folder = shutil.copytree(contest.folder, tmp_path / "moved")
    # Nothing that is finished is done again; what is missing is.
    finished = folder / "gates" / "gumbel_ff-seed0"
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.json")}
    (folder / "gates" / "ppo-seed0" / "training.json").unlink()
    (folder / "report.html").unlink()
    assert compare_main(["--resume", str(folder)]) == 0
    assert figures(capsys.readouterr().out) == figures(contest.shown)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (folder / "gates" / "ppo-seed0" / "training.json").is_file()
    assert (folder / "report.html").is_file()


def test_gate_above_its_budget_is_marked(contest):
    lines = contest.shown.splitlines()
    (row,) = (line for line in lines if line.startswith("Gumbel FF, budget 1.5"))
    assert " !" in row
    points = gates_of(contest.folder)
    low = next(p for p in points if p.label.startswith("Gumbel FF") and p.budget == 1.5)
    assert exceeds_budget(low)
    least, _ = budget_range_of(contest.folder / "gates" / "gumbel_ff-seed0")
    assert low.selection_computation == pytest.approx(least, rel=0.01)


def test_gate_is_evaluated_once_for_high_budgets(contest, tmp_path):
    run = contest.folder / "gates" / "gumbel_ff-seed0"
    evaluations = sorted(run.glob("summary-at-*.json"))
    assert len(evaluations) == 2
    flags = [str(run), "--budgets", "90", "95", "--device", "cpu", *SHORT]
    assert compare_main([*flags, "--run-dir", str(tmp_path / "higher")]) == 0
    assert sorted(run.glob("summary-at-*.json")) == evaluations
    high = gates_of(tmp_path / "higher")
    assert [p.budget for p in high] == [90.0, 95.0]
    for point in high:
        assert point.selection_computation == pytest.approx(budget_range_of(run)[1], rel=0.01)


def test_gates_of_other_settings_are_refused(contest, tmp_path, capsys):
    folder = shutil.copytree(contest.folder, tmp_path / "contest")
    run = RunFolder.open(folder / "gates" / "gumbel_ff-seed0")
    run.replace_config(replace(run.config(TrainGumbelConfig), timesteps=48))
    assert compare_main(["--resume", str(folder)]) == 0
    said = capsys.readouterr().err
    assert said.count("trained with other settings than this comparison asks for") == 1


def test_recorded_command_makes_the_gate_again(contest, tmp_path):
    run = RunFolder.open(contest.folder / "gates" / "gumbel_ff-seed0")
    words = list(run.record().command)
    assert words[:3] == ["python", "-m", "dfs_rl.train_gumbel"]
    assert train_gumbel.main([*words[3:], "--run-dir", str(tmp_path / "again")]) == 0
    weights = [
        (p / "gate" / "gate.safetensors").read_bytes() for p in (run.path, tmp_path / "again")
    ]
    assert weights[0] == weights[1]
    page = (contest.folder / "report.html").read_text()
    assert " ".join(words) in page
    most = math.ceil(1e4 * budget_range_of(run.path)[1]) / 1e4
    assert f"python -m dfs_rl.evaluate {run.path} --budget {most:g}" in page


def test_locked_jobs_come_last():
    calls: list[tuple[str, bool]] = []

    def do(part: str, on_wait: OnWait) -> None:
        calls.append((part, on_wait is not None))
        if part == "locked" and on_wait is None:
            raise BusyError

    distribute_jobs(["locked", "free"], do)
    assert calls == [("locked", False), ("free", False), ("locked", False), ("locked", True)]


def test_two_processes_share_a_comparison(tmp_path, capsys):
    folder = tmp_path / "contest"
    flags = ["--dataset", "digits", "--budgets", "1", "2", "--gates", "static_greedy"]
    flags += ["--device", "cpu", *SHORT, "--run-dir", str(folder)]
    command = [sys.executable, "-m", "dfs_rl.compare", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        while not list(folder.glob("gates/*/run.json")):
            assert other.poll() is None
            time.sleep(0.05)
        assert compare_main(["--resume", str(folder)]) == 0
        theirs = other.communicate()[0]
    assert other.returncode == 0
    assert figures(capsys.readouterr().out) == figures(theirs)
    assert len(list(folder.glob("gates/*/training.json"))) == 2


def test_gates_of_dfs_are_compared_at_its_budgets(tmp_path, capsys):
    supernet, folder = tmp_path / "supernet", tmp_path / "contest"
    flags = ["--backbone", "resnet8", "--width", "2", "--bits", "dfs", "--epochs", "4"]
    assert train_backbone_main([*flags, "--device", "cpu", "--run-dir", str(supernet)]) == 0
    (tmp_path / "gumbel.yaml").write_text(GUMBEL)
    flags = ["--dataset", "digits", "--backbone", str(supernet), "--budgets", "20", "50"]
    flags += ["--gates", "dfs_ff", "--gumbel", str(tmp_path / "gumbel.yaml")]
    flags += ["--seeds", "1", "--timesteps", "4000", "--device", "cpu", *SHORT]
    assert compare_main([*flags, "--run-dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Failed" not in shown
    comparison = read_comparison(folder)
    assert comparison.options == (0, 8, 10, 12, 14, 16, 32)
    assert comparison.reference_computation == pytest.approx(100.0, abs=1.0)
    assert [curve.label for curve in comparison.curves if curve.baseline is None] == ["DFS FF"]
    assert all(curve.hypervolume.mean > 0 for curve in comparison.curves)
    for gate in gates_of(folder):
        assert gate.budget is not None
        assert gate.selection_computation <= 1.05 * gate.budget


@pytest.mark.usefixtures("no_allowed_constructors")
def test_custom_weights_reach_every_gate():
    write("ownnets")
    trust_constructor("ownnets:make")
    network = call_constructor("ownnets:make")
    assert isinstance(network, nn.Module)
    learned = torch.arange(10.0)
    torch.save(network.state_dict() | {"5.bias": learned}, "net.pt")
    flags = ["--dataset", "digits", "--backbone", "ownnets:make", "--weights", "net.pt"]
    flags += ["--gates", "static_greedy", "--budgets", "90", "--device", "cpu"]
    assert compare_main([*flags, *SHORT, "--run-dir", "contest"]) == 0
    run = Path("contest/gates/static_greedy-seed0-at-90")
    shutil.rmtree(run)  # as if the contest had been stopped before
    assert compare_main(["--resume", "contest", "--trust-code"]) == 0
    words = list(RunFolder.open(run).record().command)
    assert words[words.index("--weights") + 1] == "net.pt"
    theirs = load_backbone(run).state_dict()
    assert torch.equal(theirs["after.ops.operator_5_2.bias"], learned)
