"""Killed drivers and nodes, with the workers on them: a sweep keeps finished trials and resumes."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray

from dfs_rl.sweep import main
from dfs_rl.utils.ray import ray_deprecations_ignored
from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]

pytestmark = pytest.mark.timeout(600)

SWEEP = """\
command: train_agent
settings: {timesteps: 960, num_envs: 32, eval_every: 96, passes: 1,
  start: indifferent}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 2
retrain: {seeds: 0}
"""


NODE = {"num_cpus": 1, "object_store_memory": 2**27}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def check_all_finished(run):
    with (run / "results.csv").open() as lines:
        rows = [(row["status"], row["reason"]) for row in csv.DictReader(lines)]
    assert rows == [("finished", "")] * 2


def start(log, *arguments):
    """Start the command with its output in a file, and without Ray's settings of other tests.

    Tune stores its state at once instead of every ten seconds.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_A", "RAY_E"))}
    environment["TUNE_GLOBAL_CHECKPOINT_S"] = "0.2"
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "dfs_rl.sweep", *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def wait_for(find, process, log):
    """Return what a search finds, once it finds anything; the process runs on meanwhile."""
    deadline = time.monotonic() + 240
    while not (found := find()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def ended(run):
    """Return the results of the trials whose end Tune has stored, by file.

    A trial's own report of its end is not enough: Tune stores its state only now and then, and a
    sweep that is killed before trains the last steps again.
    """
    try:
        state = max(run.glob("tune/search/experiment_state-*.json")).read_text()
        trials = [json.loads(trial) for trial, _ in json.loads(state)["trial_data"]]
    except ValueError:  # no state yet, or half of one
        return {}
    numbers = [t["experiment_tag"].split("_")[0] for t in trials if t["status"] == "TERMINATED"]
    paths = [run / f"tune/search/trial_{int(n):05d}/result.json" for n in numbers]
    return {path: path.read_text() for path in paths}


def test_failed_node_loses_no_trial(file, tmp_path):
    with ray_deprecations_ignored():
        from ray.cluster_utils import Cluster
    assert not ray.is_initialized()
    run = tmp_path / "run"
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    second = cluster.add_node(**NODE)
    removed, ended = [], threading.Event()

    def remove_node() -> None:
        while not ended.wait(0.1):
            # Both nodes train once both trials have a checkpoint.
            if len(list(run.glob("tune/search/*/checkpoint_*/seed0/checkpoints"))) > 1:
                cluster.remove_node(second, allow_graceful=False)
                removed.append(second)
                return

    watcher = threading.Thread(target=remove_node)
    watcher.start()
    try:
        code = main([str(file), "--run-dir", str(run), "--address", cluster.address])
    finally:
        ended.set()
        watcher.join()
        cluster.shutdown()
    assert removed
    assert code == 0
    check_all_finished(run)


def test_sweep_survives_its_killed_driver(file, tmp_path, ray_here):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(log, file, "--run-dir", run, "--cpus", "1")
    done = wait_for(lambda: ended(run), first, log)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert len(done) == 1

    assert main(["--resume", str(run)]) == 0
    check_all_finished(run)
    assert {path: path.read_text() for path in done} == done
