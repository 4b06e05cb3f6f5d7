"""Two nodes on one machine, one of which fails during a sweep."""

import csv
import threading

import pytest
import ray

from dfs_rl.sweep import main
from dfs_rl.utils.ray import ray_deprecations_ignored

pytestmark = pytest.mark.timeout(200)

SWEEP = """\
command: train_agent
settings: {timesteps: 1920, num_envs: 32, eval_every: 96}
search: {reward.log_likelihood: {uniform: [0, 1]}}
trials: 3
retrain: {seeds: 0}
"""
NODE = {"num_cpus": 1, "object_store_memory": 2**27}


def test_failed_node_loses_no_trial(tmp_path):
    with ray_deprecations_ignored():
        from ray.cluster_utils import Cluster
    assert not ray.is_initialized()
    run, file = tmp_path / "run", tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    second = cluster.add_node(**NODE)
    removed, ended = [], threading.Event()

    def remove_node() -> None:
        while not ended.wait(0.1):
            # Both nodes train once two trials have a checkpoint.
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
    with (run / "results.csv").open() as lines:
        assert [row["status"] for row in csv.DictReader(lines)] == ["finished"] * 3
