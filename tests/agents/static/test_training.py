"""Search for a static bit table in a run: its result, and exact resumption."""

import shutil
import signal
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.scoring import static_table_computation
from dfs_rl.experiments.search_config import TrainStaticConfig
from dfs_rl.experiments.static_search import CHECKPOINT, FINALISTS, train
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.experiments.test_resume import make_dataset, untrained
from tests.helpers.interrupts import SignalAt
from tests.helpers.quick import quick_runs

__all__ = ["quick_runs"]  # before ``whole``, unlike a fixture of single tests

BUDGET = 10.0
EPISODES = 30
LAYERS = 3


def new_run(path):
    config = TrainStaticConfig()
    return RunFolder.create(path, kind="test", name="test", config=config, command=("test",))


def search(run, method, bar=None, budget=BUDGET):
    config = TrainStaticConfig(method=method, budget=budget, episodes=EPISODES, images=1000, seed=3)
    dataset = make_dataset()
    return train(config, dataset, run, deepcopy(untrained()), bar=bar or SignalAt())


class CopyAt(SignalAt):
    """Copies a run's folder at a number of steps, as a killed process leaves it."""

    def __init__(self, timesteps, run):
        super().__init__(timesteps)
        self.run = run

    def update(self, timesteps, **figures):
        if timesteps == self.at:
            shutil.copytree(self.run.path, self.run.path.with_name("killed"))


def outcome(run):
    return read_json(run.path / "gate" / "gate.json"), run.read_metrics()


METHODS = ("ddpg", "ppo", "greedy", "search")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs and their results, by method."""
    runs = {}
    for method in METHODS:
        run = new_run(tmp_path_factory.mktemp("whole") / method)
        bar = CopyAt(60, run) if method == "ppo" else None
        runs[method] = SimpleNamespace(run=run, result=search(run, method, bar))
    return runs


def test_val_selects_among_the_best_tables(whole):
    run, result = whole["ppo"].run, whole["ppo"].result
    metrics = run.read_metrics()
    tables = [tuple(r["options"]) for r in metrics if r["kind"] == "episode"]
    assert len(tables) == EPISODES
    dataset = make_dataset()
    backbone = deepcopy(untrained()).backbone.to_inference()

    def score(table, images):
        records = evaluate_static_table(backbone, images, table, name="t")
        return records.accuracy, round(float(records.log_likelihood.mean()), 9)

    assert all(static_table_computation(backbone.costs, t) <= BUDGET + 1e-9 for t in tables)
    ranked = sorted(set(tables), key=lambda table: score(table, dataset.agent), reverse=True)
    last = [record for record in metrics if record["kind"] == "validation"][-1]
    best = max(score(table, dataset.val) for table in ranked[:FINALISTS])
    assert last["timesteps"] == EPISODES * LAYERS
    assert last["accuracy"] == pytest.approx(best[0])
    gate = load_gate(run.path / "gate")
    assert isinstance(gate, TableGate)
    assert gate.options == backbone.options
    assert result.best_on_val["accuracy"] == pytest.approx(score(gate.table, dataset.val)[0])
    assert result.images_seen["gate"] % len(dataset.agent) == 0


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_search_resumes_exactly(tmp_path, whole, method):
    stopped = new_run(tmp_path / "stopped")
    at = 4 if method == "greedy" else 24 * LAYERS
    with pytest.raises(KeyboardInterrupt):
        search(stopped, method, SignalAt(at, signal.SIGINT))
    assert stopped.read_metrics()[-1]["timesteps"] == at
    assert stopped.has_checkpoint(CHECKPOINT)
    again = search(stopped, method)
    assert outcome(stopped) == outcome(whole[method].run)
    assert again == whole[method].result


def test_killed_search_resumes_exactly(whole):
    killed = RunFolder.open(whole["ppo"].run.path.with_name("killed"))
    search(killed, "ppo")
    assert outcome(killed) == outcome(whole["ppo"].run)


def test_stored_scores_are_reused(tmp_path):
    run = new_run(tmp_path / "run")
    search(run, "greedy")
    tensors, state = run.load_checkpoint(CHECKPOINT)
    none_right = torch.zeros_like(tensors["agent.correct"])
    run.save_checkpoint(CHECKPOINT, tensors | {"agent.correct": none_right}, state)
    search(run, "greedy")
    episodes = [record for record in run.read_metrics() if record["kind"] == "episode"]
    assert {record["accuracy"] for record in episodes} == {0.0}


def test_other_checkpoints_and_budgets_are_refused(tmp_path):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(CHECKPOINT, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="has no scores of static bit tables"):
        search(run, "greedy")
    with pytest.raises(ConfigError, match=r"budget is 0\.01 %, too little"):
        search(new_run(tmp_path / "low"), "ddpg", budget=0.01)
