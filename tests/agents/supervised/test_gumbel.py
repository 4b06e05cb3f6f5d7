"""Supervised gates solve the planted task within their budget, and resume exactly."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch

from dfs_rl.agents.supervised.config import SUPERVISED_METHODS, GumbelConfig, SkipNetConfig
from dfs_rl.agents.supervised.dfs import DFSTrainer
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.errors import CheckpointError, ConfigError, TrainingError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.experiments import gumbel_training
from dfs_rl.experiments.gumbel_config import TrainGumbelConfig
from dfs_rl.experiments.gumbel_training import budgeted_rewards
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from tests.experiments.test_resume import assert_equal_runs, make_dataset, untrained
from tests.helpers.interrupts import SignalAt
from tests.helpers.pictures import no_pictures
from tests.helpers.planted_task import (
    SmoothPlantedBackbone,
    accuracy_and_spent,
    best_table_accuracy,
    make_gate,
    make_gate_task,
    planted_images,
    run_steps,
)

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

# The needs of both layers come to (0 + 1/8 + 1/2) / 3 of a layer each, 41.7 % in all.
BUDGET = 0.45
# The best table within it, 16 bit everywhere, is enough for 2 x 2 of 3 x 3 needs.
BEST_TABLE_ACCURACY = 100 * 4 / 9
TRAINERS: dict[str, type[GumbelTrainer]] = {"gumbel": GumbelTrainer, "dfs": DFSTrainer}


def make_trainer(gate, *, method="gumbel", task=None, **changes):
    config = SUPERVISED_METHODS[method](**({"batch_size": 18, "learning_rate": 0.03} | changes))
    return TRAINERS[method](config, task or make_gate_task(gate, budget=BUDGET))


def is_solved(gate):
    """Return whether the gate is far above every table, within 1.1 times the budget."""
    accuracy, spent = accuracy_and_spent(gate)
    return accuracy > BEST_TABLE_ACCURACY + 30 and spent <= 100 * BUDGET * 1.1


@pytest.mark.parametrize(("method", "kind"), [("gumbel", "lstm"), ("gumbel", "ff"), ("dfs", "ff")])
def test_gates_learn_what_no_table_can(method, kind):
    gate = make_gate(kind)
    assert not is_solved(gate)
    assert is_solved(run_steps(make_trainer(gate, method=method), 600))


def test_best_table_is_as_stated():
    assert best_table_accuracy(range(3), BUDGET) == pytest.approx(BEST_TABLE_ACCURACY)


def test_multiplier_follows_the_cost():
    trainer, expected = make_trainer(make_gate()), 0.1
    for _ in range(5):
        losses = trainer.step()
        assert losses["multiplier"] == pytest.approx(expected)
        expected *= math.exp(0.02 * max(-1.0, min(losses["spent"] - 1.0, 1.0)))


def test_dfs_executes_everything_first():
    trainer = make_trainer(make_gate(), method="dfs", multiplier=0.3)
    history = [trainer.step() for _ in range(400)]
    full = next(i for i, losses in enumerate(history) if losses["spent"] * BUDGET >= 0.95)
    assert {round(losses["multiplier"], 9) for losses in history[: full + 1]} == {-0.3}
    for losses in history[full + 1 :]:
        assert losses["multiplier"] == pytest.approx(0.3 if losses["spent"] > 1.0 else -0.3)
    assert {round(losses["multiplier"], 9) for losses in history[full + 1 :]} == {0.3, -0.3}


def test_dfs_first_phase_ends_below_full_precision():
    backbone = SmoothPlantedBackbone()
    backbone.options = BitOptions((0, 16))
    backbone.costs = CostTable(options=backbone.options, layer_macs=(100, 100))
    gate = make_gate("ff", backbone)
    task = make_gate_task(gate, backbone=backbone, budget=0.1, steps=300)
    trainer = make_trainer(gate, method="dfs", task=task, multiplier=0.3)
    assert {round(trainer.step()["multiplier"], 9) for _ in range(300)} == {-0.3, 0.3}


def test_cost_above_the_budget_lowers_all_rewards():
    backbone = SmoothPlantedBackbone()

    def rewards(option, budget):
        records = evaluate_static_table(backbone, planted_images(), (option,) * 2, name="t")
        return budgeted_rewards(records, backbone.costs, budget=budget)

    torch.testing.assert_close(rewards(1, 30.0), rewards(1, 100.0))
    over = rewards(2, 100.0) - rewards(2, 30.0)
    torch.testing.assert_close(over, torch.full_like(over, 50.0 * 0.7))


def test_loss_that_is_not_finite_stops():
    gate = make_gate()
    with torch.no_grad():
        next(gate.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="training stopped at step 0: its loss is nan"):
        make_trainer(gate).step()


def test_budget_must_leave_something():
    with pytest.raises(ConfigError, match="leaves nothing for the gated layers"):
        make_gate_task(make_gate(), budget=0.0)


# --- runs


PER_STEP = 8 * 3


def make_config(**changes):
    method = SUPERVISED_METHODS[changes.get("method", "gumbel")]
    settings: dict[str, Any] = {
        "gate": "lstm",
        "training": method(batch_size=8, distillation=0.5 if method.is_relaxed else 0.0),
        "timesteps": 10 * PER_STEP,
        "budget": 20.0,
        "fixed_budget": True,
        "features": "all",
        "hidden": 4,
        "start": "indifferent",
        "eval_every": 3 * PER_STEP,
        "checkpoint_every": 4 * PER_STEP,
        "seed": 5,
    }
    return TrainGumbelConfig(**(settings | changes))


def train(run, config, *, stop_at=None):
    dataset = make_dataset()
    stored = deepcopy(untrained())
    return gumbel_training.train(config, dataset, run, stored, bar=SignalAt(stop_at))


def new_run(path):
    config = GumbelConfig()
    return RunFolder.create(path, kind="test", name="test", config=config, command=("test",))


def assert_resumes(path, config, *, killed=False):
    """Check that a run stopped after six steps ends as an uninterrupted one."""
    whole, parts = new_run(path / "whole"), new_run(path / "parts")
    result = train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, stop_at=6 * PER_STEP)
    assert parts.load_checkpoint(LAST_CHECKPOINT).state["trainer"]["steps"] == 6
    if killed:  # a killed run leaves records after its checkpoint
        parts.log({"kind": "update", "timesteps": 7 * PER_STEP})
    for _ in range(1 + killed):  # a finished run does not change
        assert train(parts, config) == result
        assert_equal_runs(whole, parts)
    return result


@pytest.mark.parametrize(
    "config",
    [
        make_config(),
        make_config(method="dfs", gate="ff"),
        make_config(fixed_budget=False),
        make_config(method="skipnet"),
        make_config(method="skipnet", gate="ff", skipnet=SkipNetConfig(pretraining=0.7)),
        make_config(method="blockdrop", gate="ff"),
    ],
    ids=["gumbel-lstm", "dfs-ff", "gumbel-lstm-all", "skipnet-lstm", "skipnet-ff", "blockdrop"],
)
def test_ctrl_c_saves_and_the_run_resumes(tmp_path, config):
    assert_resumes(tmp_path, config, killed=config == make_config())


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    run = new_run(tmp_path / "foreign")
    run.save_checkpoint(LAST_CHECKPOINT, {"weight": torch.zeros(1)}, {"timesteps": 3, "metrics": 0})
    with pytest.raises(CheckpointError, match="of something else: timesteps"):
        train(run, make_config())
    run = new_run(tmp_path / "other")
    train(run, make_config(timesteps=PER_STEP))
    with pytest.raises(CheckpointError, match="does not fit this run's gate"):
        train(run, make_config(timesteps=2 * PER_STEP, hidden=5))
