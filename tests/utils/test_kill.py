"""Processes that are killed at any moment, or race: what they leave is whole."""

import subprocess
import sys

START = """
import itertools, os, random, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from dfs_rl.errors import RunFolderError
from dfs_rl.utils.run_folder import RunFolder

place = Path(sys.argv[1])

@dataclass(frozen=True)
class Config:
    seed: int = 5

def create(path, seed=5):
    return RunFolder.create(
        path, kind="t", name="t", config=Config(seed), command=[], files={"own.yaml": b"a: 1"}
    )
"""


def run(script: str, *arguments: object) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", START + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


# One process imports torch and forks a child per kill, so that 12 kills take a second.
SAVES = """
import torch

torch.set_num_threads(1)
folder = RunFolder(place, "train")
chance = random.Random(0)
newest = 0
folder.save_checkpoint("last", {"w": torch.zeros(20_000)}, {"step": newest})

def save_for_ever(step):
    while True:
        step += 1
        folder.log({"step": step, "padding": "x" * 500})
        folder.save_checkpoint("last", {"w": torch.full((20_000,), step)}, {"step": step})

for kill in range(12):
    child = os.fork()
    if child == 0:
        save_for_ever(newest)
    while kill == 0 and len(list(folder.read_metrics())) < 2:
        pass  # one checkpoint is complete, however slow the machine is
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
print(newest)
"""


def test_kill_leaves_the_old_or_the_new_checkpoint(tmp_path):
    (newest,) = run(SAVES, tmp_path)
    assert int(newest) > 0


CREATIONS = """
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.scandir"}

def kill_before(event):
    # Kill this process before it touches the disk for the event-th time.
    seen = [0]
    def hook(name, arguments):
        if name in EVENTS:
            if seen[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
    sys.addaudithook(hook)

def killed(path, event):
    child = os.fork()
    if child == 0:
        kill_before(event)
        try:
            create(path)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0

complete, incomplete = 0, 0
for existing in (False, True):
    for event in itertools.count():
        path = place / f"{existing}{event}"
        if existing:
            path.mkdir()
            (path / "notes.txt").write_text("mine")
        more = killed(path, event)
        if (path / "run.json").exists():
            complete += 1
            run = RunFolder.open(path)
        else:
            incomplete += 1
            run = create(path)
        assert RunFolder.open(path).config(Config) == Config()
        with run.lock():
            left = {file.name for file in path.iterdir()} - {"notes.txt", ".lock"}
        assert left == {"config.yaml", "own.yaml", "run.json"}, (event, left)
        assert {file.name for file in path.parent.iterdir() if file.name.startswith(".")} == set()
        if not more:
            break
print(complete, incomplete)
"""


def test_kill_during_creation_leaves_a_run_or_none(tmp_path):
    complete, incomplete = map(int, run(CREATIONS, tmp_path))
    assert complete > 2
    assert incomplete > 20


RACE = """
for turn in range(8):
    path = place / str(turn)
    if turn % 2:
        path.mkdir()
        (path / "notes.txt").touch()
    children = []
    gate = os.pipe()
    for number in range(4):
        child = os.fork()
        if child == 0:
            os.close(gate[1])
            os.read(gate[0], 1)
            try:
                create(path, number)
            except RunFolderError:
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(gate[1])
    os.close(gate[0])
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 1, 1, 1], codes
    assert RunFolder.open(path).config(Config).seed == codes.index(0)
"""


def test_one_of_several_creators_of_a_run_wins(tmp_path):
    run(RACE, tmp_path)
