"""Killed drivers and workers, and signals: a sweep keeps finished trials and resumes."""

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
settings: {timesteps: 1440, num_envs: 32, eval_every: 96}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 3
retrain: {seeds: 0}
"""


def start(log, *arguments):
    """Start the command with its output in a file."""
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "dfs_rl.sweep", *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Tests in the background ignore Ctrl-C, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_until(found, process, log):
    deadline = time.monotonic() + 240
    while not found():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def statuses(run):
    with (run / "results.csv").open() as lines:
        return [row["status"] for row in csv.DictReader(lines)]


def folders(run):
    return sorted((run / "tune" / "search").glob("trial_*"))


def ended(folder):
    """Return whether Tune has stored the end of a trial."""
    path = folder / "result.json"
    return path.is_file() and re.search(r'"progress": 100\b', path.read_text()) is not None


def sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_sweep_survives_killed_processes(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(log, sweep_file(tmp_path), "--run-dir", run, "--cpus", "1")
    wait_until(lambda: len(folders(run)) > 1 and any(map(ended, folders(run))), first, log)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {f: (f / "result.json").read_text() for f in folders(run) if ended(f)}
    assert 1 <= len(done) < 3

    second = start(log, "--resume", run)
    wait_until(lambda: _trial_workers(second.pid), second, log)
    os.kill(_trial_workers(second.pid)[0], signal.SIGKILL)
    assert second.wait(timeout=400) == 0, log.read_text()
    assert statuses(run) == ["finished"] * 3
    for folder, before in done.items():
        now = (folder / "result.json").read_text()
        assert now.startswith(before)
        # A finished trial may report its end once more, but trains nothing.
        assert all(json.loads(line)["progress"] == 100 for line in now[len(before) :].splitlines())


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_sweep_that_can_resume(tmp_path, how, code):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(log, sweep_file(tmp_path), "--run-dir", run, "--cpus", "1")
    wait_until(lambda: any(map(ended, folders(run))), process, log)
    process.send_signal(how)
    assert process.wait(timeout=120) == code, log.read_text()
    assert f"continue with: python -m dfs_rl.sweep --resume {run}" in log.read_text()
    assert "Traceback" not in log.read_text()


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
