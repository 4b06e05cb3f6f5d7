"""Reinforcement that goes on from a gate: it begins as that gate, keeps what it knew, and refuses what does not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import Logger

import dfs_rl
from dfs_rl import train_agent, train_gumbel
from dfs_rl.agents.algorithms import PolicySettings, build_algorithm
from dfs_rl.agents.gate_export import check_initial_gate, deploy, load_gate_into_policy
from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    AlgorithmConfig,
    MaskablePPOConfig,
    PPOConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
from dfs_rl.backbones import PRETRAINED_DIGITS, load_stored_backbone, save_backbone
from dfs_rl.costs import BitOptions
from dfs_rl.data import load_dataset
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.envs.task import Task
from dfs_rl.errors import ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning, CostWeightRange
from dfs_rl.gating.networks import LearnedGate, LSTMGate, MLPGate
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.storage import load_gate, save_gate
from tests.agents.conftest import PlantedBackbone

HIDDEN = 6


def make_gate(
    kind: type[MLPGate | LSTMGate], *, budget_conditioning: bool, preference: float = 0.3
) -> LearnedGate:
    torch.manual_seed(4)
    return kind(
        (3, 3),
        PlantedBackbone.options,
        hidden=HIDDEN,
        budget_conditioning=BudgetConditioning() if budget_conditioning else None,
        preference=preference,
    )


def make_model(config: AlgorithmConfig, images, *, budget_conditioning: bool):
    task = Task(
        backbone=PlantedBackbone(),
        images=images,
        reward=RewardWeights(),
        budget=None,
        class_names=("no", "yes"),
        cost_weight_range=CostWeightRange(lowest=1.0, highest=10.0)
        if budget_conditioning
        else None,
    )
    learning = PolicySettings(
        timesteps=600_000,
        feature_sizes=(3, 3),
        hidden=HIDDEN,
        group_size=8,
        seed=0,
        device="cpu",
    )
    env = SB3GatingVecEnv(task, 32, group_size=8, seed=0)
    model = build_algorithm(config, env, learning)
    model.set_logger(Logger(None, []))
    return model


def logits(gate: LearnedGate, context: torch.Tensor) -> torch.Tensor:
    features = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    gate.reset(9)
    return torch.stack([gate(features, layer, context) for layer in range(2)])


@pytest.mark.parametrize("budget_conditioning", [False, True])
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (PPOConfig(), MLPGate),
        (A2CConfig(), MLPGate),
        (MaskablePPOConfig(), MLPGate),
        (TRPOConfig(), MLPGate),
        (RecurrentPPOConfig(), LSTMGate),
    ],
    ids=["ppo", "a2c", "maskable-ppo", "trpo", "recurrent-ppo"],
)
def test_the_policy_begins_as_the_gate(
    planted_images, config, kind, budget_conditioning: bool
) -> None:
    gate, model = (
        make_gate(kind, budget_conditioning=budget_conditioning),
        make_model(config, planted_images, budget_conditioning=budget_conditioning),
    )
    load_gate_into_policy(model, gate)
    again = deploy(
        model,
        PlantedBackbone.options,
        feature_macs=0.0,
        name="gate",
        budget_conditioning=BudgetConditioning() if budget_conditioning else None,
    )
    context = torch.rand(9, 3 + budget_conditioning, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(again, context), logits(gate, context))


def test_a_gate_for_one_budget_begins_the_same_at_all_prices(planted_images) -> None:
    gate = make_gate(MLPGate, budget_conditioning=False)
    model = make_model(PPOConfig(), planted_images, budget_conditioning=True)
    load_gate_into_policy(model, gate)
    again = deploy(
        model,
        PlantedBackbone.options,
        feature_macs=0.0,
        name="gate",
        budget_conditioning=BudgetConditioning(),
    )
    context = torch.rand(9, 4)
    torch.testing.assert_close(logits(again, context), logits(gate, context[:, :3]))


def test_a_gate_for_all_budgets_begins_where_it_was_turned_to(planted_images) -> None:
    gate = make_gate(MLPGate, budget_conditioning=True, preference=0.7)
    model = make_model(PPOConfig(), planted_images, budget_conditioning=False)
    load_gate_into_policy(model, gate)
    again = deploy(model, PlantedBackbone.options, feature_macs=0.0, name="gate")
    context = torch.rand(9, 3)
    turned = torch.cat([context, torch.full((9, 1), 0.7)], dim=1)
    torch.testing.assert_close(logits(again, context), logits(gate, turned))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (LSTMGate((3, 3), PlantedBackbone.options, hidden=6), "is LSTMGate"),
        (MLPGate((3, 3), BitOptions((0, 8)), hidden=6), r"chooses from bits \[0, 8\]"),
        (
            MLPGate((3, 3), PlantedBackbone.options, hidden=6, choices=(0, 2)),
            r"may choose the options \[0, 2\], but the one to be learned from it \[0, 1, 2\]",
        ),
        (MLPGate((3, 2), PlantedBackbone.options, hidden=6), r"reads features \[3, 2\]"),
        (MLPGate((3, 3), PlantedBackbone.options, hidden=7), "is as wide as 7"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused_by_name(other: LearnedGate, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"the gate of runs/other {sentence}"):
        check_initial_gate(other, make_gate(MLPGate, budget_conditioning=False), "runs/other")


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("init") / "gumbel"
    flags = ["--timesteps", "2000", "--training.batch-size", "32", "--device", "cpu"]
    assert (
        train_gumbel.main([*flags, "--budget", "5", "--hidden", "9", "--run-dir", str(path)]) == 0
    )
    return path


TINY = ["--timesteps", "400", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]


def test_the_command_goes_on_from_a_run_and_needs_it_no_more(
    tmp_path: Path, supervised: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(supervised, source)
    path = tmp_path / "run"
    slow = ["--algorithm.learning-rate", "1e-9"]
    assert train_agent.main([*TINY, *slow, "--init-gate", str(source), "--run-dir", str(path)]) == 0
    ours, theirs = load_gate(path / "gate"), load_gate(source / "gate")
    assert ours.hidden == theirs.hidden == 9
    images = load_dataset("digits").val.images
    models = [dfs_rl.load(run) for run in (path, source)]
    for model in models:
        model.gate.preference = 0.5
    bits = [model(images)[1].bits for model in models]
    assert (bits[0] == bits[1]).float().mean() > 0.99  # a step of 1e-9 changes next to nothing
    shutil.rmtree(source)
    (path / "training.json").unlink()
    assert train_agent.main(["--resume", str(path)]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init-gate", "nowhere"], "nowhere"),
        (["--init-gate", "{0}", "--hidden", "8"], "is as wide as 9, but the one to be learned"),
        (["--init-gate", "{0}", "--features", "all"], "reads features"),
        (["--init-gate", "{0}", "--algo", "recurrent_ppo"], "is MLPGate"),
        (["--init-gate", "{0}", "--algo", "dqn"], "DQN learns what options are worth"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(
    refusal: Callable[..., str], supervised: Path, flags: list[str], words: str
) -> None:
    flags = [flag.format(supervised) for flag in flags]
    assert words in refusal(train_agent.main, [*TINY, *flags])


def test_a_gate_of_another_backbone_and_a_table_are_refused(
    tmp_path: Path, supervised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = load_stored_backbone(PRETRAINED_DIGITS)
    table, other = tmp_path / "table", tmp_path / "other"
    save_backbone(stored.backbone, stored.info, table / "backbone")
    with torch.no_grad():
        next(stored.backbone.parameters()).mul_(1.01)
    save_backbone(stored.backbone, stored.info, other)
    chosen = ["--init-gate", str(supervised), "--backbone", str(other)]
    assert train_agent.main([*TINY, *chosen, "--run-dir", str(tmp_path / "a")]) == 2
    assert "was learned on a backbone of its own" in capsys.readouterr().err
    menu = stored.backbone.options
    save_gate(TableGate((1,) * stored.backbone.costs.n_layers, options=menu), table / "gate")
    assert (
        train_agent.main([*TINY, "--init-gate", str(table), "--run-dir", str(tmp_path / "b")]) == 2
    )
    assert "is a table; a gate goes on from one that looks" in capsys.readouterr().err
