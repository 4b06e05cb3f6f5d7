"""Result of a search, and exact resumption after Ctrl-C or a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.agents.logging import ProgressBar
from dfs_rl.errors import CheckpointError, ConfigError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.static_tables.budget import static_table_computation
from dfs_rl.experiments.session import TrainingResult
from dfs_rl.experiments.static_search import CHECKPOINT, FINALISTS, train
from dfs_rl.experiments.static_training import TrainStaticConfig
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.io import read_json
from dfs_rl.utils.run_folder import RunFolder
from tests.experiments.test_resume import give_backbone, make_dataset, make_stored
from tests.helpers.pictures import no_pictures

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

BUDGET = 10.0
EPISODES = 30
LAYERS = 3
ROOT = Path(__file__).parents[3]


class SignalAt(ProgressBar):
    """Sends this process a signal after so many choices."""

    def __init__(self, timesteps: int, number: signal.Signals) -> None:
        super().__init__(0, print_status=lambda _: None)
        self.at = timesteps
        self.number = number

    def update(self, timesteps: int, **figures: str) -> None:
        if timesteps == self.at:
            os.kill(os.getpid(), self.number)


def new_run(path: Path) -> RunFolder:
    config = TrainStaticConfig()
    return RunFolder.create(path, kind="test", name="test", config=config, command=("test",))


def search(
    run: RunFolder, method: StaticMethod, bar: ProgressBar | None = None, **changes: Any
) -> TrainingResult:
    settings: dict[str, Any] = {
        "method": method,
        "budget": BUDGET,
        "episodes": EPISODES,
        "images": 1000,
        "seed": 3,
    }
    dataset = make_dataset()
    give_backbone(run, dataset)
    bar = bar or ProgressBar(0, print_status=lambda _: None)
    return train(TrainStaticConfig(**(settings | changes)), dataset, run, "cpu", bar=bar)


def search_and_be_killed(path: str, at: int) -> None:
    """Run the child process of the kill test."""
    torch.set_num_threads(1)
    search(new_run(Path(path)), "ppo", SignalAt(at, signal.SIGKILL))


def outcome(run: RunFolder) -> tuple[Any, Any]:
    """Return the gate and the records of a search."""
    return read_json(run.path / "gate" / "gate.json"), run.read_metrics()


def test_best_finalist_on_val_is_kept(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    result = search(run, "ppo")
    metrics = run.read_metrics()
    tried = [tuple(r["options"]) for r in metrics if r["kind"] == "episode"]  # type: ignore[arg-type]
    assert len(tried) == EPISODES
    assert all(isinstance(table, tuple) for table in tried)

    dataset = make_dataset()
    backbone = make_stored(dataset).backbone.to_inference()

    def score(table: tuple[int, ...], images: Any) -> tuple[float, float]:
        records = evaluate_static_table(backbone, images, table, name="t")
        return records.accuracy, round(float(records.log_likelihood.mean()), 9)

    assert all(static_table_computation(backbone.costs, table) <= BUDGET + 1e-9 for table in tried)
    ranked = sorted(set(tried), key=lambda table: score(table, dataset.agent), reverse=True)
    last = [record for record in metrics if record["kind"] == "validation"][-1]
    best = max(score(table, dataset.val) for table in ranked[:FINALISTS])
    assert last["timesteps"] == EPISODES * LAYERS
    assert last["accuracy"] == pytest.approx(best[0])

    gate = load_gate(run.path / "gate")
    assert isinstance(gate, TableGate)
    assert gate.options == backbone.options
    assert result.best["accuracy"] == pytest.approx(score(gate.table, dataset.val)[0])
    assert result.images_seen["gate"] % len(dataset.agent) == 0


@pytest.mark.parametrize("method", ["ddpg", "ppo", "greedy"])
def test_interrupted_search_resumes(tmp_path: Path, method: StaticMethod) -> None:
    whole, stopped = new_run(tmp_path / "whole"), new_run(tmp_path / "stopped")
    expected = search(whole, method)
    at = 4 if method == "greedy" else 24 * LAYERS
    with pytest.raises(KeyboardInterrupt):
        search(stopped, method, SignalAt(at, signal.SIGINT))
    assert stopped.read_metrics()[-1]["timesteps"] == at
    assert stopped.has_checkpoint(CHECKPOINT)
    again = search(stopped, method)
    assert outcome(stopped) == outcome(whole)
    assert again == expected


def test_killed_search_resumes(tmp_path: Path) -> None:
    path = tmp_path / "killed"
    code = (
        f"from tests.agents.static.test_training import *; search_and_be_killed({str(path)!r}, 60)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    killed, whole = RunFolder.open(path), new_run(tmp_path / "whole")
    search(whole, "ppo")
    search(killed, "ppo")
    assert outcome(killed) == outcome(whole)


def test_stored_scores_are_not_measured_again(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    search(run, "greedy")
    tensors, state = run.load_checkpoint(CHECKPOINT)
    none_right = torch.zeros_like(tensors["agent.correct"])
    run.save_checkpoint(CHECKPOINT, tensors | {"agent.correct": none_right}, state)
    search(run, "greedy")
    episodes = [record for record in run.read_metrics() if record["kind"] == "episode"]
    assert {record["accuracy"] for record in episodes} == {0.0}


def test_foreign_scores_are_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.save_checkpoint(CHECKPOINT, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="are not those of a search for a table"):
        search(run, "greedy")


def test_budget_below_the_cheapest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget 0\.01 % is not enough for the cheapest choice"):
        search(new_run(tmp_path / "run"), "ddpg", budget=0.01)
