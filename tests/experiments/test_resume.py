"""A training that was interrupted or killed ends exactly where an uninterrupted one ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    AlgorithmName,
    CoTrainConfig,
    DQNConfig,
    MaskablePPOConfig,
    PPOConfig,
    QRDQNConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
from dfs_rl.backbones import StoredBackbone
from dfs_rl.data import Dataset, ImageSet
from dfs_rl.errors import CheckpointError
from dfs_rl.experiments import gate_training
from dfs_rl.experiments.agent_config import TrainAgentConfig
from dfs_rl.experiments.session import TrainingRecord
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from tests.helpers.small_backbone import small_backbone

STEPS_PER_UPDATE = 16 * 3


@cache
def make_dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> ImageSet:
        pixels = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
        return ImageSet(images=pixels, labels=torch.arange(n) % 3)

    return Dataset(
        name="noise",
        class_names=("a", "b", "c"),
        train=images(30),
        agent=images(24),
        val=images(12),
        test=images(12),
        flip=True,
    )


@cache
def untrained() -> StoredBackbone:
    return small_backbone(make_dataset(), bits=(0, 2, 8, 32))


PRICES = (1.0, 50.0)
LABELS: dict[str, AlgorithmName] = {
    config.label: name  # type: ignore[misc]
    for name, config in (
        ("ppo", PPOConfig),
        ("a2c", A2CConfig),
        ("maskable_ppo", MaskablePPOConfig),
        ("trpo", TRPOConfig),
        ("recurrent_ppo", RecurrentPPOConfig),
        ("dqn", DQNConfig),
        ("qrdqn", QRDQNConfig),
    )
}


def make_config(
    algorithm: AlgorithmConfig,
    *,
    group: int = 4,
    cost_weight_range: tuple[float, float] | None = None,
    cotrain: CoTrainConfig | None = None,
    **changes: Any,
) -> TrainAgentConfig:
    name = LABELS[algorithm.label]
    settings: dict[str, Any] = {
        "algo": name,
        "algorithm": algorithm,
        "timesteps": 5 * STEPS_PER_UPDATE,
        "group_size": group,
        "num_envs": 16,
        "features": "all",
        "hidden": 4,
        "start": "indifferent",
        "eval_every": 3 * STEPS_PER_UPDATE,
        "seed": 5,
    }
    if cost_weight_range is None:
        settings |= {"fixed_budget": True}
    else:
        settings |= {"cost_weight_range": cost_weight_range, "budget": 50.0}
    if cotrain is not None:
        settings |= {"backbone_mode": "co-train", "cotrain": cotrain}
    return TrainAgentConfig(**(settings | changes))


class SignalAt(BaseCallback):
    """Sends this process a signal in the middle of a rollout."""

    def __init__(self, timesteps: int, number: signal.Signals) -> None:
        super().__init__()
        self.at = timesteps
        self.number = number

    def _on_step(self) -> bool:
        if self.model.num_timesteps == self.at:
            os.kill(os.getpid(), self.number)
        return True


def new_run(path: Path) -> RunFolder:
    return RunFolder.create(path, kind="test", name="test", config=PPOConfig(), command=("test",))


def train(
    run: RunFolder, config: TrainAgentConfig, *extra_callbacks: BaseCallback
) -> TrainingRecord:
    stored = deepcopy(untrained())  # co-training changes it
    return gate_training.train(config, make_dataset(), run, stored, extra_callbacks=extra_callbacks)


def train_and_be_killed(path: str, at: int) -> None:
    """What the child process of the kill test runs."""
    torch.set_num_threads(1)
    config = make_config(PPOConfig(), timesteps=7 * STEPS_PER_UPDATE)
    train(new_run(Path(path)), config, SignalAt(at, signal.SIGKILL))


def assert_equal_runs(first: RunFolder, second: RunFolder) -> None:
    assert first.metrics_path.read_text() == second.metrics_path.read_text()
    gates = [load_gate(run.path / "gate") for run in (first, second)]
    assert type(gates[0]) is type(gates[1])
    if isinstance(gates[0], RuleGate):
        assert gates[0].rules == gates[1].rules
    else:
        weights = [gate.state_dict() for gate in gates]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    ends = [run.load_checkpoint(LAST_CHECKPOINT) for run in (first, second)]
    assert ends[0].state == ends[1].state
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    assert all(torch.equal(value, ends[1].tensors[name]) for name, value in ends[0].tensors.items())


@pytest.mark.parametrize(
    "config",
    [
        make_config(PPOConfig()),
        make_config(PPOConfig(), group=1),
        make_config(A2CConfig()),
        make_config(PPOConfig(), cotrain=CoTrainConfig(batch_size=8)),
        make_config(PPOConfig(), cost_weight_range=PRICES, start="uniform"),
        make_config(PPOConfig(), cost_weight_range=PRICES, cotrain=CoTrainConfig(batch_size=8)),
        make_config(
            MaskablePPOConfig(), per_input_budget=80.0, cotrain=CoTrainConfig(batch_size=8)
        ),
        make_config(TRPOConfig()),
        make_config(RecurrentPPOConfig(), cost_weight_range=PRICES),
        make_config(RecurrentPPOConfig(), group=1),
        make_config(DQNConfig(gradient_steps=4), group=1),
        # Memory for two updates of five.
        make_config(
            QRDQNConfig(gradient_steps=4, buffer_size=2 * STEPS_PER_UPDATE),
            group=1,
            cost_weight_range=PRICES,
        ),
    ],
    ids=lambda config: f"{config.algo}-{config.group_size}-{config.backbone_mode}",
)
def test_interrupted_run_resumes_exactly(tmp_path, config):
    whole = new_run(tmp_path / "whole")
    result = train(whole, config)
    parts = new_run(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, SignalAt(2 * STEPS_PER_UPDATE + 32, signal.SIGINT))
    # The update at hand was finished, and that is where the checkpoint is.
    assert parts.load_checkpoint(LAST_CHECKPOINT).state["timesteps"] == 3 * STEPS_PER_UPDATE
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)


@pytest.mark.parametrize("start", ["rule", "indifferent"])
def test_interrupted_run_of_passes_resumes_exactly(start, tmp_path):
    config = make_config(
        PPOConfig(), group=1, cost_weight_range=PRICES, passes=2, start=start, features="none"
    )
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    result = train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(parts, config, SignalAt(2 * 64 + 32, signal.SIGINT))
    # An update has three layers and the end of a pass, so episodes are at different places.
    assert parts.load_checkpoint(LAST_CHECKPOINT).state["timesteps"] == 3 * 64
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)


def test_kill_loses_only_work_after_the_checkpoint(tmp_path):
    config = make_config(PPOConfig(), timesteps=7 * STEPS_PER_UPDATE)
    whole = new_run(tmp_path / "whole")
    result = train(whole, config)
    # In the sixth update: later than the checkpoint of the third, with records of the fifth.
    code = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1]); "
        "module['train_and_be_killed'](sys.argv[2], int(sys.argv[3]))"
    )
    at = 5 * STEPS_PER_UPDATE + 16
    child = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "parts"), str(at)], check=False
    )
    assert child.returncode == -signal.SIGKILL
    parts = RunFolder.open(tmp_path / "parts")
    assert parts.load_checkpoint(LAST_CHECKPOINT).state["timesteps"] == 3 * STEPS_PER_UPDATE
    assert parts.read_metrics()[-1]["timesteps"] == 5 * STEPS_PER_UPDATE
    assert train(parts, config) == result
    assert_equal_runs(whole, parts)


def test_run_killed_before_a_checkpoint_starts_anew(tmp_path):
    config = make_config(PPOConfig(), timesteps=2 * STEPS_PER_UPDATE)
    whole = new_run(tmp_path / "whole")
    train(whole, config)
    parts = new_run(tmp_path / "parts")
    parts.log({"kind": "validation", "timesteps": 0})  # all that a killed run left
    train(parts, config)
    assert_equal_runs(whole, parts)


def test_metrics_depend_on_the_seed_alone(tmp_path):
    texts = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run = new_run(tmp_path / name)
        train(run, make_config(PPOConfig(), timesteps=2 * STEPS_PER_UPDATE, seed=seed))
        texts.append(run.metrics_path.read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folder after one update."""
    run = new_run(tmp_path_factory.mktemp("trained") / "run")
    train(run, make_config(PPOConfig(), timesteps=STEPS_PER_UPDATE))
    return run.path


@pytest.fixture
def begun(trained, tmp_path):
    return RunFolder.open(shutil.copytree(trained, tmp_path / "run"))


def test_finished_run_does_not_change(trained, begun):
    train(begun, make_config(PPOConfig(), timesteps=STEPS_PER_UPDATE))
    assert_equal_runs(RunFolder.open(trained), begun)


def test_checkpoint_of_another_gate_is_refused(begun):
    with pytest.raises(CheckpointError, match="does not fit this run's configuration"):
        train(begun, make_config(PPOConfig(), timesteps=2 * STEPS_PER_UPDATE, hidden=5))


def test_checkpoint_of_another_kind_is_refused(tmp_path):
    run = new_run(tmp_path / "run")
    run.save_checkpoint(LAST_CHECKPOINT, {"weight": torch.zeros(1)}, {"timesteps": 3, "epoch": 1})
    with pytest.raises(CheckpointError, match="damaged or of something else: epoch"):
        train(run, make_config(PPOConfig()))


def test_metrics_hold_updates_and_validations(tmp_path):
    run = new_run(tmp_path / "run")
    train(run, make_config(PPOConfig(), timesteps=4 * STEPS_PER_UPDATE))
    records = run.read_metrics()
    updates = [r["timesteps"] for r in records if r["kind"] == "update"]
    validations = [r for r in records if r["kind"] == "validation"]
    assert updates == [STEPS_PER_UPDATE * i for i in range(1, 5)]
    assert [v["timesteps"] for v in validations] == [STEPS_PER_UPDATE * i for i in (0, 3, 4)]
    for record in validations:
        shares = torch.tensor(record["histogram"])
        assert shares.shape == (3, 4)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    assert list(run.tensorboard_dir.glob("events.*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"timesteps": "48"}, "timesteps is '48'"),
        ({"timesteps": -48}, "timesteps is -48"),
        ({"updates": 1.5}, "updates is 1.5"),
        ({"metrics": None}, "metrics is null"),
        ({"env": []}, "env is []"),
        ({"env": {"indices": [0] * 15 + ["0"]}}, r"env.indices[15] is '0'"),
        ({"env": {"indices": [0] * 15 + [24]}}, "shows image 24"),
        ({"env": {"actions": [[99]] * 16}}, "does not fit"),
        ({"env": {"streams": {"keys": [2**64] * 4, "episodes": [0] * 4}}}, f"is {2**64}"),
        ({"validation": {"validated_at": "0", "best": None}}, "validation.validated_at is '0'"),
        ({"validation": {"validated_at": 0, "best": {"reward": 1}}}, "validation.best"),
    ],
)
def test_state_of_other_types_is_refused(begun, changes, named):
    tensors, state = begun.load_checkpoint(LAST_CHECKPOINT)
    env = {**state["env"], **changes["env"]} if isinstance(changes.get("env"), dict) else None  # type: ignore[dict-item]
    altered = {**state, **changes} | ({} if env is None else {"env": env})
    begun.save_checkpoint(LAST_CHECKPOINT, tensors, altered)
    before = begun.metrics_path.read_bytes()
    with pytest.raises(CheckpointError, match=re.escape(named)):
        train(begun, make_config(PPOConfig(), timesteps=2 * STEPS_PER_UPDATE))
    assert begun.metrics_path.read_bytes() == before


@pytest.mark.parametrize("prefix", ["policy.", "optimizer.0.exp_avg", "best_gate.", "validation."])
@pytest.mark.parametrize("change", ["nan", "shape"])
def test_unusable_tensors_are_refused_on_resume(begun, prefix, change):
    tensors, state = begun.load_checkpoint(LAST_CHECKPOINT)
    name = next(name for name in tensors if name.startswith(prefix))
    broken = torch.full_like(tensors[name], torch.nan) if change == "nan" else torch.zeros(1, 2, 3)
    begun.save_checkpoint(LAST_CHECKPOINT, tensors | {name: broken}, state)
    with pytest.raises(CheckpointError, match=name if change == "nan" else "does not fit"):
        train(begun, make_config(PPOConfig(), timesteps=2 * STEPS_PER_UPDATE))
