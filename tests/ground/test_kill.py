"""A process that saves in a loop is killed at random moments; what it leaves must be whole."""

import subprocess
import sys

# One process imports torch and forks a child per kill, so that 25 kills take about a second.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from dfs_rl.runs import RunFolder

torch.set_num_threads(1)
folder = RunFolder(Path(sys.argv[1]), "train")
folder.path.mkdir()
chance = random.Random(0)
newest = 0
folder.save_checkpoint("last", {"w": torch.zeros(20_000)}, {"step": newest})

def save_for_ever(step):
    while True:
        step += 1
        folder.log({"step": step, "padding": "x" * 500})
        folder.save_checkpoint("last", {"w": torch.full((20_000,), step)}, {"step": step})

for kill in range(25):
    child = os.fork()
    if child == 0:
        save_for_ever(newest)
    time.sleep(chance.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoint = folder.load_checkpoint("last")
    step = checkpoint.state["step"]
    assert bool((checkpoint.tensors["w"] == step).all()), "tensors and state of different moments"
    assert step >= newest, "an older checkpoint came back"
    newest = step
    steps = [record["step"] for record in folder.read_metrics()]
    assert steps == list(range(1, len(steps) + 1)), steps
    assert len(steps) >= step, "a checkpoint knows a record that was never written"
    folder.truncate_metrics(step)

print("saved", newest)
"""


def test_kill_at_any_moment_leaves_the_previous_checkpoint_or_the_new_one(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.removeprefix("saved ")) > 0
