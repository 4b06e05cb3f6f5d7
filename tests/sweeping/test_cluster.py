"""Two nodes on one machine, of which one is lost in mid-sweep."""

import csv
import threading

import pytest

from dfs_rl.sweep import main
from dfs_rl.utils.ray import ray_deprecations_ignored

pytestmark = pytest.mark.timeout(200)

SWEEP = """\
command: train_agent
settings: {timesteps: 2400, num_envs: 32, eval_every: 96}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 4
retrain: {seeds: 0}
"""


MEMORY = {"object_store_memory": 2**27}


def cluster_of_one():
    """Start a node that a second one can join."""
    ray = pytest.importorskip("ray")
    with ray_deprecations_ignored():
        from ray.cluster_utils import Cluster
    assert not ray.is_initialized(), "this test needs a cluster of its own"
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **MEMORY})


def test_a_lost_node_loses_no_trial(tmp_path):
    run = tmp_path / "run"
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    cluster = cluster_of_one()
    second = cluster.add_node(num_cpus=1, **MEMORY)
    lost, over = [], threading.Event()

    def lose() -> None:
        while not over.wait(0.1):
            # Both nodes train once two trials have a checkpoint.
            if len(list(run.glob("tune/search/*/checkpoint_*/seed0/checkpoints"))) > 1:
                cluster.remove_node(second, allow_graceful=False)
                lost.append(second)
                return

    watcher = threading.Thread(target=lose)
    watcher.start()
    try:
        file = str(tmp_path / "sweep.yaml")
        code = main([file, "--run-dir", str(run), "--address", cluster.address])
    finally:
        over.set()
        watcher.join()
        cluster.shutdown()
    assert lost
    assert code == 0
    with (run / "results.csv").open() as lines:
        assert [row["status"] for row in csv.DictReader(lines)] == ["finished"] * 4
