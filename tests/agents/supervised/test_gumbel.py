"""Gates that learn by supervision solve a planted task, hold their budget, and go on exactly where they were stopped."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfs_rl.agents.hyperparameters import GateKind
from dfs_rl.agents.logging import ProgressBar
from dfs_rl.agents.supervised.config import (
    RelaxedMethod,
    SkipNetConfig,
    SupervisedConfig,
)
from dfs_rl.agents.supervised.dfs import DFSTrainer
from dfs_rl.agents.supervised.gumbel import GumbelTrainer
from dfs_rl.agents.supervised.relaxed import RelaxedTrainer
from dfs_rl.agents.supervised.trainer import GateTask
from dfs_rl.costs import BitOptions, CostTable
from dfs_rl.data import ImageSet
from dfs_rl.errors import CheckpointError, ConfigError, TrainingError
from dfs_rl.evaluation.evaluator import evaluate_gate, evaluate_static_table
from dfs_rl.experiments import gumbel_training
from dfs_rl.experiments.gumbel_training import budgeted_rewards
from dfs_rl.experiments.session import TrainingResult
from dfs_rl.experiments.supervised_training import TrainGumbelConfig
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from tests.agents.conftest import PlantedBackbone
from tests.experiments.test_resume import assert_equal_runs, give_backbone, make_dataset
from tests.helpers.pictures import no_pictures

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

# What both layers need comes to (0 + 1/8 + 1/2) / 3 of a layer each, 41.7 % in all.
BUDGET = 0.45
# Within it no table does better than 16 bit everywhere, which is enough for 2 x 2 of 3 x 3 needs.
BEST_TABLE_ACCURACY = 100 * 4 / 9
TRAINERS: dict[RelaxedMethod, type[RelaxedTrainer]] = {"gumbel": GumbelTrainer, "dfs": DFSTrainer}


class SmoothPlantedBackbone(PlantedBackbone):
    """The planted task with a head that tells by how much a debt is too large, without which there is no gradient."""

    def head(self, hidden: Tensor) -> Tensor:
        label = hidden[:, 0, 0, 0]
        debt = hidden[:, 1:, 0, 0].sum(dim=1)
        side = torch.tanh(1.0 - 2.0 * debt) * (2.0 * label - 1.0)  # [batch]
        return 3.0 * torch.stack([-side, side], dim=1)


def make_task(
    gate: LearnedGate,
    images: ImageSet,
    *,
    backbone: PlantedBackbone | None = None,
    budget: float = BUDGET,
    steps: int = 600,
) -> GateTask:
    backbone = backbone or SmoothPlantedBackbone()
    return GateTask(
        backbone=backbone,
        frozen=backbone,
        gate=gate,
        images=images,
        target=lambda preferences: torch.full_like(preferences, budget),
        steps=steps,
        seed=0,
    )


def make_trainer(
    gate: LearnedGate,
    images: ImageSet,
    *,
    method: RelaxedMethod = "gumbel",
    steps: int = 600,
    **changes: float,
) -> RelaxedTrainer:
    return TRAINERS[method](
        SupervisedConfig(**({"batch_size": 18, "learning_rate": 0.03} | changes)),  # type: ignore[arg-type]
        make_task(gate, images, steps=steps),
    )


def make_gate(kind: GateKind) -> LearnedGate:
    torch.manual_seed(0)
    made = {"ff": MLPGate, "lstm": LSTMGate}[kind]
    return made((3, 3), PlantedBackbone.options, hidden=16)


def is_solved(gate: LearnedGate, images: ImageSet) -> bool:
    """Whether the gate is far above every table, at no more than a tenth above the budget."""
    backbone = SmoothPlantedBackbone()
    records = evaluate_gate(backbone, gate, images)
    spent = float(records.computation(backbone.costs, "dfs").mean())
    return records.accuracy > BEST_TABLE_ACCURACY + 30 and spent <= 100 * BUDGET * 1.1


@pytest.mark.parametrize(
    ("method", "kind"), [("gumbel", "ff"), ("gumbel", "lstm"), ("dfs", "ff"), ("dfs", "lstm")]
)
def test_gates_learn_what_no_table_within_the_budget_can(
    planted_images: ImageSet, method: RelaxedMethod, kind: GateKind
) -> None:
    gate = make_gate(kind)
    assert not is_solved(gate, planted_images)
    trainer = make_trainer(gate, planted_images, method=method)
    for _ in range(600):
        trainer.step()
    assert is_solved(gate, planted_images)


def test_the_best_table_within_the_budget_is_as_stated(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    accuracies = []
    for table in ((a, b) for a in range(3) for b in range(3)):
        records = evaluate_static_table(backbone, planted_images, table, name="table")
        if float(records.computation(backbone.costs, "dfs").mean()) <= 100 * BUDGET:
            accuracies.append(records.accuracy)
    assert max(accuracies) == pytest.approx(BEST_TABLE_ACCURACY)


def test_gumbels_price_follows_overspending(planted_images: ImageSet) -> None:
    trainer = make_trainer(make_gate("ff"), planted_images, multiplier=0.1, multiplier_lr=0.02)
    expected = 0.1
    for _ in range(5):
        losses = trainer.step()
        assert losses.multiplier == pytest.approx(expected)
        expected *= math.exp(0.02 * max(-1.0, min(losses.spent - 1.0, 1.0)))


def test_dfs_executes_everything_first_and_then_flips_its_sign_at_the_budget(
    planted_images: ImageSet,
) -> None:
    trainer = make_trainer(make_gate("ff"), planted_images, method="dfs", multiplier=0.3)
    history = [trainer.step() for _ in range(400)]
    full = next(i for i, losses in enumerate(history) if losses.spent * BUDGET >= 0.95)
    assert {round(losses.multiplier, 9) for losses in history[: full + 1]} == {-0.3}
    for losses in history[full + 1 :]:
        assert losses.multiplier == pytest.approx(0.3 if losses.spent > 1.0 else -0.3)
    assert {round(losses.multiplier, 9) for losses in history[full + 1 :]} == {0.3, -0.3}


def test_dfs_ends_its_first_phase_on_a_menu_without_full_precision(
    planted_images: ImageSet,
) -> None:
    backbone = SmoothPlantedBackbone()
    backbone.options = BitOptions((0, 16))
    backbone.costs = CostTable(options=backbone.options, layer_macs=(100, 100))
    torch.manual_seed(0)
    gate = MLPGate((3, 3), backbone.options, hidden=16)
    trainer = DFSTrainer(
        SupervisedConfig(batch_size=18, learning_rate=0.03, multiplier=0.3),
        make_task(gate, planted_images, backbone=backbone, budget=0.1, steps=300),
    )
    assert {round(trainer.step().multiplier, 9) for _ in range(300)} == {-0.3, 0.3}


def test_the_price_never_leaves_its_bounds(planted_images: ImageSet) -> None:
    cheap = make_trainer(make_gate("ff"), planted_images, multiplier=1e-6, multiplier_lr=1.0)
    with torch.no_grad():
        for network in cheap.gate.networks:
            network[2].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    assert [cheap.step().multiplier for _ in range(3)] == pytest.approx([1e-6] * 3)


def test_a_budget_that_leaves_nothing_is_refused(planted_images: ImageSet) -> None:
    with pytest.raises(ConfigError, match="leaves nothing for the gated layers"):
        make_task(make_gate("ff"), planted_images, budget=0.0)


def test_spending_above_the_budget_costs_every_image_alike(planted_images: ImageSet) -> None:
    backbone = SmoothPlantedBackbone()
    cheap, dear = (
        evaluate_static_table(backbone, planted_images, table, name="t")
        for table in ((1, 1), (2, 2))
    )
    within = budgeted_rewards(cheap, backbone.costs, budget=30.0)
    torch.testing.assert_close(within, budgeted_rewards(cheap, backbone.costs, budget=100.0))
    above = budgeted_rewards(dear, backbone.costs, budget=30.0)
    free = budgeted_rewards(dear, backbone.costs, budget=100.0)
    torch.testing.assert_close(free - above, torch.full_like(free, 50.0 * 0.7))


def test_a_loss_that_is_not_finite_stops_in_a_sentence(planted_images: ImageSet) -> None:
    gate = make_gate("ff")
    trainer = make_trainer(gate, planted_images)
    with torch.no_grad():
        next(gate.parameters()).fill_(math.nan)
    with pytest.raises(TrainingError, match="training stopped at step 0: its loss is nan"):
        trainer.step()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"temperature": math.inf}, "temperature is inf; it must be finite"),
        ({"multiplier_lr": -1.0}, "multiplier_lr is -1.0; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SupervisedConfig(**change)  # type: ignore[arg-type]


class SignalAt(ProgressBar):
    """Sends this process Ctrl-C after so many timesteps."""

    def __init__(self, timesteps: int | None) -> None:
        super().__init__(0, print_status=lambda _: None)
        self.at = timesteps

    def update(self, timesteps: int, **figures: str) -> None:
        if timesteps == self.at:
            os.kill(os.getpid(), signal.SIGINT)


PER_STEP = 8 * 3


def make_config(**changes: Any) -> TrainGumbelConfig:
    settings: dict[str, Any] = {
        "gate": "lstm",
        "training": SupervisedConfig(batch_size=8, distillation=0.5),
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
    if changes.get("method", "gumbel") not in ("gumbel", "dfs"):
        settings["training"] = SupervisedConfig(batch_size=8)
    return TrainGumbelConfig(**(settings | changes))


def train(
    run: RunFolder, config: TrainGumbelConfig, *, stop_at: int | None = None
) -> TrainingResult:
    dataset = make_dataset()
    give_backbone(run, dataset)
    return gumbel_training.train(config, dataset, run, "cpu", bar=SignalAt(stop_at))


def new_run(path: Path) -> RunFolder:
    return RunFolder.create(
        path, kind="test", name="test", config=SupervisedConfig(), command=("test",)
    )


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
def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, config: TrainGumbelConfig
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    result = train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, stop_at=6 * PER_STEP)
    assert parts.load_checkpoint(LAST_CHECKPOINT).state["trainer"]["steps"] == 6
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)
    assert train(parts, config) == result  # finished, it stays as it is
    assert_equal_runs(whole, parts)


def test_what_came_after_the_last_checkpoint_is_made_again(tmp_path: Path) -> None:
    config = make_config()
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    result = train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, stop_at=6 * PER_STEP)
    parts.log({"kind": "update", "timesteps": 7 * PER_STEP})  # as a killed run leaves behind
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)


def test_a_checkpoint_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.save_checkpoint(LAST_CHECKPOINT, {"weight": torch.zeros(1)}, {"timesteps": 3, "metrics": 0})
    with pytest.raises(CheckpointError, match="of something else: timesteps"):
        train(run, make_config())


def test_a_checkpoint_of_another_gate_is_refused_in_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    train(run, make_config(timesteps=PER_STEP))
    with pytest.raises(CheckpointError, match="does not fit this run's gate"):
        train(run, make_config(timesteps=2 * PER_STEP, hidden=5))


def test_the_budget_must_suffice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget 0.001 % is not enough"):
        train(new_run(tmp_path / "run"), make_config(budget=0.001))
