"""Reinforcement learning from an initial gate: same policy, and refusal of what does not fit."""

import shutil

import pytest
import torch

import dfs_rl
from dfs_rl import train_agent
from dfs_rl.agents.algorithms import build_algorithm
from dfs_rl.agents.gate_export import check_initial_gate, load_gate_into_policy
from dfs_rl.agents.hyperparameters import (
    A2CConfig,
    MaskablePPOConfig,
    PPOConfig,
    RecurrentPPOConfig,
    TRPOConfig,
)
from dfs_rl.backbones import PRETRAINED_DIGITS, load_stored_backbone, save_backbone
from dfs_rl.costs import BitOptions
from dfs_rl.data import load_dataset
from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv
from dfs_rl.errors import ConfigError
from dfs_rl.gating.base import TableGate
from dfs_rl.gating.budget_conditioning import BudgetConditioning, CostWeightRange
from dfs_rl.gating.networks import LSTMGate, MLPGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.storage import save_gate
from tests.helpers.planted_task import PlantedBackbone, gate_of, make_agent, make_gate, make_task
from tests.helpers.quick import few_images, quick_runs

__all__ = ["few_images", "quick_runs"]

OPTIONS = PlantedBackbone.options
CONDITIONED = {True: BudgetConditioning(), False: None}


def through_a_policy(config, gate, *, all_budgets):
    """Load a gate into a policy, and return the policy's gate."""
    cost_weights = CostWeightRange(lowest=1.0, highest=10.0) if all_budgets else None
    model = make_agent(config, make_task(cost_weight_range=cost_weights), n_envs=32)
    load_gate_into_policy(model, gate)
    return gate_of(model, config, budget_conditioning=CONDITIONED[all_budgets])


def logits(gate, context):
    features = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    gate.reset(9)
    return torch.stack([gate(features, layer, context) for layer in range(2)])


@pytest.mark.parametrize("all_budgets", [False, True])
@pytest.mark.parametrize(
    "config",
    [PPOConfig(), A2CConfig(), MaskablePPOConfig(), TRPOConfig(), RecurrentPPOConfig()],
    ids=lambda config: config.label,
)
def test_policy_starts_as_the_gate(config, all_budgets):
    gate = make_gate(config.gate, budget_conditioning=CONDITIONED[all_budgets])
    again = through_a_policy(config, gate, all_budgets=all_budgets)
    context = torch.rand(9, 3 + all_budgets, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(again, context), logits(gate, context))


def test_gate_for_one_budget_has_no_preference():
    gate = make_gate()
    again = through_a_policy(PPOConfig(), gate, all_budgets=True)
    context = torch.rand(9, 4)
    torch.testing.assert_close(logits(again, context), logits(gate, context[:, :3]))


def test_gate_for_all_budgets_starts_at_its_preference():
    gate = make_gate(budget_conditioning=BudgetConditioning(), preference=0.7)
    again = through_a_policy(PPOConfig(), gate, all_budgets=False)
    context = torch.rand(9, 3)
    extended = torch.cat([context, torch.full((9, 1), 0.7)], dim=1)
    torch.testing.assert_close(logits(again, context), logits(gate, extended))


@pytest.mark.parametrize("all_budgets", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_evidence_of_passes_keeps_its_weights(conditioned, all_budgets):
    passes = PassSettings(limit=3)
    gate = make_gate(passes=passes, budget_conditioning=CONDITIONED[conditioned], preference=0.7)
    for parameter in gate.parameters():
        parameter.data.normal_()
    cost_weights = CostWeightRange(lowest=1.0, highest=10.0) if all_budgets else None
    env = SB3GatingVecEnv(make_task(passes=passes, cost_weight_range=cost_weights), 8)
    config = PPOConfig()
    model = build_algorithm(
        config, env, feature_sizes=gate.input_sizes, hidden=gate.hidden, timesteps=1000
    )
    load_gate_into_policy(model, gate)
    again = gate_of(model, config, passes=passes, budget_conditioning=CONDITIONED[all_budgets])
    features, context = torch.rand(9, 3), torch.rand(9, 3)
    evidence, preference = torch.rand(9, passes.evidence_size), torch.full((9, 1), 0.7)
    for layer in range(3):
        ours, theirs = (
            each(features, layer, torch.cat([context, *[preference] * has, evidence], dim=1))
            for each, has in ((gate, conditioned), (again, all_budgets))
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (LSTMGate((3, 3), OPTIONS), "kind LSTMGate"),
        (MLPGate((3, 3), BitOptions((0, 8))), r"bit options \[0, 8\]"),
        (MLPGate((3, 3), OPTIONS, choices=(0, 2)), r"allowed options \[0, 2\].* has \[0, 1, 2\]"),
        (MLPGate((3, 2), OPTIONS), r"feature sizes \[3, 2\]"),
        (MLPGate((3, 3), OPTIONS, hidden=7), "hidden width 7.* has 16"),
    ],
)
def test_gates_that_do_not_fit_are_refused(other, sentence):
    with pytest.raises(ConfigError, match=f"init_gate is runs/other, .* the {sentence}"):
        check_initial_gate(other, make_gate(), "runs/other")


# --- commands

TINY = ["--timesteps", "400", "--num-envs", "32", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    path = tmp_path_factory.mktemp("init") / "gumbel"
    settings = {"timesteps": 2000, "training": {"batch_size": 32}, "budget": 5.0, "hidden": 9}
    settings |= {"run_dir": path, "device": "cpu", "threads": 1}
    return dfs_rl.train_gate(None, "digits", method="gumbel", **settings).path


def test_a_run_copies_its_initial_gate(tmp_path, supervised):
    source, path = tmp_path / "source", tmp_path / "run"
    shutil.copytree(supervised, source)
    settings = {"timesteps": 400, "num_envs": 32, "learning_rate": 1e-9, "init_gate": str(source)}
    settings |= {"run_dir": path, "device": "cpu", "precision": "float32", "threads": 1}
    dfs_rl.train_gate(None, "digits", **settings)
    images = load_dataset("digits").val.images
    bits = []
    for run in (path, source):
        model = dfs_rl.load(run)
        assert model.gate.hidden == 9
        model.gate.preference = 0.5
        bits.append(model(images)[1].bits)
    assert (bits[0] == bits[1]).float().mean() > 0.99  # a step of 1e-9 changes next to nothing
    shutil.rmtree(source)
    (path / "training.json").unlink()
    assert train_agent.main(["--resume", str(path)]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init-gate", "nowhere"], "nowhere"),
        (["--init-gate", "{0}", "--hidden", "8"], "hidden width 9"),
        (["--init-gate", "{0}", "--features", "all"], "feature sizes"),
        (["--init-gate", "{0}", "--algo", "recurrent_ppo"], "kind MLPGate"),
        (["--init-gate", "{0}", "--algo", "dqn"], "algo"),
    ],
)
def test_initial_gates_that_do_not_fit_are_refused(refusal, supervised, flags, words):
    flags = [flag.format(supervised) for flag in flags]
    assert words in refusal(train_agent.main, [*TINY, *flags])


def test_other_backbones_and_tables_are_refused(refusal, tmp_path, supervised):
    stored = load_stored_backbone(PRETRAINED_DIGITS)
    table, other = tmp_path / "table", tmp_path / "other"
    save_backbone(stored.backbone, stored.info, table / "backbone")
    costs = stored.backbone.costs
    save_gate(TableGate((1,) * costs.n_layers, options=costs.options), table / "gate")
    with torch.no_grad():
        next(stored.backbone.parameters()).mul_(1.01)
    save_backbone(stored.backbone, stored.info, other)
    flags = ["--init-gate", str(supervised), "--backbone", str(other)]
    assert str(supervised) in refusal(train_agent.main, [*TINY, *flags])
    assert str(table) in refusal(train_agent.main, [*TINY, "--init-gate", str(table)])
