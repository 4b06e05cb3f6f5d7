"""Whatever is killed, no finished trial is lost, and the sweep comes to its end."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

SWEEP = """\
command: train_agent
settings: {timesteps: 2880, num_envs: 32, eval_every: 96}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 4
retrain: {seeds: 0}
"""


def start(said, *arguments):
    """Start the command, which says what it says in a file."""
    with said.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "dfs_rl.sweep", *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Tests that a shell runs in the background have Ctrl-C ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_until(found, process, said):
    deadline = time.monotonic() + 240
    while not found():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def statuses(run):
    with (run / "results.csv").open() as lines:
        return [row["status"] for row in csv.DictReader(lines)]


def folders(run):
    return sorted((run / "tune" / "search").glob("search_*"))


def ended(folder):
    """Whether Tune was told that a trial is done."""
    path = folder / "result.json"
    return path.is_file() and re.search(r'"progress": 100\b', path.read_text()) is not None


def sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_a_killed_driver_and_a_killed_worker(tmp_path):
    run, said = tmp_path / "run", tmp_path / "said"
    first = start(said, sweep_file(tmp_path), "--run-dir", run, "--cpus", "1")
    wait_until(lambda: len(folders(run)) > 1 and any(map(ended, folders(run))), first, said)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {f: (f / "result.json").read_text() for f in folders(run) if ended(f)}
    assert 1 <= len(done) < 4

    second = start(said, "--resume", run)
    wait_until(lambda: _trial_workers(second.pid), second, said)
    os.kill(_trial_workers(second.pid)[0], signal.SIGKILL)
    assert second.wait(timeout=400) == 0, said.read_text()
    assert statuses(run) == ["finished"] * 4
    for folder, told in done.items():
        now = (folder / "result.json").read_text()
        assert now.startswith(told)
        # A trial whose end the driver had not noted when it was killed tells of it once more, and trains nothing.
        assert all(json.loads(line)["progress"] == 100 for line in now[len(told) :].splitlines())


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_termination_save_and_say_how_to_go_on(tmp_path, how, code):
    run, said = tmp_path / "run", tmp_path / "said"
    process = start(said, sweep_file(tmp_path), "--run-dir", run, "--cpus", "1")
    wait_until(lambda: any(map(ended, folders(run))), process, said)
    process.send_signal(how)
    assert process.wait(timeout=120) == code, said.read_text()
    assert f"go on with: python -m dfs_rl.sweep --resume {run}" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert list(run.glob("tensorboard/*/seed0/events.*"))  # while trials still run


def _trial_workers(driver):
    """Return the process ids of a driver's workers that run trials."""
    found, parents = [], {}
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            words = (path / "cmdline").read_bytes()
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if words.startswith(b"ray::ImplicitFunc"):
            found.append(int(path.name))

    def belongs(pid):
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return [pid for pid in found if belongs(pid)]
