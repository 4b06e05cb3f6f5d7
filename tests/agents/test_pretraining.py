"""Initialization at uniform options: their rewards by hand, and gates that choose them."""

import json
import math

import pytest
import torch

import dfs_rl
from dfs_rl.agents.gate_export import untrained_gate
from dfs_rl.agents.pretraining import (
    UniformOptionRewards,
    behavior_cloning,
    evaluate_uniform_options,
    pretraining_images,
    target_probabilities,
)
from dfs_rl.backbones import default_digits
from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.data import load_dataset
from dfs_rl.gating.budget_conditioning import BudgetConditioning, CostWeightRange
from dfs_rl.gating.reward import RewardWeights
from dfs_rl.gating.rollout import rollout
from dfs_rl.train_agent import main
from dfs_rl.train_gumbel import main as train_gumbel
from tests.helpers.planted_task import OPTIONS, PlantedBackbone, make_task, planted_images
from tests.helpers.quick import few_images, quick_runs

__all__ = ["few_images", "quick_runs"]

WEIGHTS = RewardWeights(accuracy=1.0, log_likelihood=0.5, cost=0.9)
# Share of right images under the option at index 0, 1 and 2; logits are 3 and -3.
RIGHT = (1 / 9, 4 / 9, 1.0)
LIKELIHOOD = math.log1p(math.exp(-6.0)) / 3
FREE = [p * (1.0 - 0.5 * LIKELIHOOD) - (1.0 - p) * 0.5 for p in RIGHT]
SPENT = [(bits / 32) ** 2 for bits in OPTIONS]
PREFERENCES = torch.linspace(0.0, 1.0, 101)


def clone(gate, task, *, seed):
    cost_weights = task.cost_weight_range

    def choose(uniform, preferences):
        fixed = torch.tensor([task.reward.cost], dtype=torch.float64)
        return uniform.best_at(fixed if cost_weights is None else cost_weights.at(preferences))

    behavior_cloning(gate, task.backbone, task.images, task.reward, choose, seed=seed)


def untrained(kind, *, all_budgets):
    torch.manual_seed(0)
    conditioning = BudgetConditioning() if all_budgets else None
    return untrained_gate(
        PlantedBackbone(), kind=kind, features="all", hidden=8, budget_conditioning=conditioning
    )


def share_of(gate, options):
    """Return the share of choices that are the option of each preference, or the single option."""
    right, images = [], planted_images().images
    expected = options.expand(len(PREFERENCES)).tolist()
    for preference, option in zip(PREFERENCES, expected, strict=True):
        at = None if gate.budget_conditioning is None else preference.expand(len(images))
        chosen = rollout(PlantedBackbone(), gate, images, preferences=at).options
        right.append((chosen == option).double().mean())
    return float(torch.stack(right).mean())


# --- rewards of uniform options


def test_rewards_are_those_counted_by_hand():
    uniform = evaluate_uniform_options(PlantedBackbone(), planted_images(), WEIGHTS)
    assert uniform.rewards.tolist() == pytest.approx(FREE)
    assert uniform.spent.tolist() == pytest.approx(SPENT)
    for cost_weight in (0.0, 0.5, 0.9, 1.5, 3.0, 10.0):
        by_hand = [free - cost_weight * spent for free, spent in zip(FREE, SPENT, strict=True)]
        best = uniform.best_at(torch.tensor([cost_weight], dtype=torch.float64))
        assert best.tolist() == [by_hand.index(max(by_hand))]


def test_an_option_that_costs_the_budget_is_within_it():
    backbone, images = default_digits(), load_dataset("digits").val.subset(torch.arange(4))
    costs, n_options = backbone.costs, len(backbone.options)
    for option in range(n_options):
        for gate_macs in (0.0, 100.0, 512.0, 777.0):
            table = torch.full((1, costs.n_layers), option)
            budget = float(costs.computation(table, gate_macs=gate_macs))
            uniform = evaluate_uniform_options(
                backbone, images, WEIGHTS, budget=budget, gate_macs=gate_macs
            )
            allowed = uniform.rewards.isfinite().tolist()
            assert allowed == [i <= option for i in range(n_options)]
            left = budget / 100.0 - costs.fixed_cost(gate_macs=gate_macs)
            more_is_better = uniform._replace(rewards=torch.arange(float(n_options)))
            best = more_is_better.best_within(torch.tensor([left], dtype=torch.float64))
            assert best.tolist() == [option]


@pytest.mark.parametrize(
    ("limits", "best"), [((None, 0.0), 2), ((60.0, 0.0), 1), ((60.0, 80.0), 0)]
)
def test_options_above_the_budget_are_not_best(limits, best):
    budget, gate_macs = limits
    uniform = evaluate_uniform_options(
        PlantedBackbone(), planted_images(), WEIGHTS, budget=budget, gate_macs=gate_macs
    )
    assert uniform.best_at(torch.zeros(1, dtype=torch.float64)).tolist() == [best]


def test_best_option_within_a_target():
    # The most expensive option earns less than the one before it.
    uniform = UniformOptionRewards(
        torch.tensor([-2.3, -0.9, -0.4, -0.5], dtype=torch.float64),
        torch.tensor([0.1, 0.2, 0.4, 1.0], dtype=torch.float64),
    )
    within = torch.tensor([0.05, 0.1, 0.19, 0.2, 0.39, 0.5, 1.0], dtype=torch.float64)
    assert uniform.best_within(within).tolist() == [0, 0, 0, 1, 1, 2, 2]
    one = torch.ones(1, dtype=torch.float64)
    equal = UniformOptionRewards(one.expand(3), torch.tensor([0.0, 0.25, 1.0]).double())
    assert equal.best_at(0.0 * one).tolist() == equal.best_within(one).tolist() == [0]


def test_odds_fall_with_the_squared_distance():
    options = BitOptions((0, 2, 4, 32))
    plain = CostTable(options=options, layer_macs=(100, 100))
    exits = (ExitCost(after=1, macs=5, bits=32),)
    exiting = CostTable(options=options, layer_macs=(100, 100), exits=exits)
    wanted = torch.tensor([0, 2])
    odds = target_probabilities(wanted, plain, 0)
    assert odds.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    relative = (odds / odds.gather(1, wanted[:, None])).log()
    expected = torch.tensor([[0.0, -2.0, -8.0, -18.0], [-8.0, -2.0, 0.0, -2.0]])
    torch.testing.assert_close(relative, expected)
    assert target_probabilities(wanted, exiting, 0)[:, -1].tolist() == [0.0, 0.0]
    at_exit = target_probabilities(wanted, exiting, 1)
    assert (at_exit[:, -1] / at_exit.amax(dim=1)).log().tolist() == pytest.approx([-2.0, -2.0])


# --- cloning


@pytest.mark.parametrize("kind", ["ff", "lstm"])
@pytest.mark.parametrize("all_budgets", [True, False])
def test_gate_starts_at_the_best_option(kind, all_budgets):
    cost_weights = CostWeightRange(lowest=0.5, highest=8.0) if all_budgets else None
    task = make_task(reward=WEIGHTS, cost_weight_range=cost_weights)
    gate = untrained(kind, all_budgets=all_budgets)
    clone(gate, task, seed=3)
    at = torch.tensor([0.9]).double()
    if cost_weights is not None:
        at = cost_weights.at(PREFERENCES.double())
    wanted = evaluate_uniform_options(task.backbone, planted_images(), WEIGHTS).best_at(at)
    assert len(set(wanted.tolist())) == (3 if all_budgets else 1)
    assert share_of(gate, wanted) > 0.95


@pytest.mark.parametrize("kind", ["ff", "lstm"])
def test_gate_starts_within_its_budget(kind):
    gate = untrained(kind, all_budgets=True)
    # Uniform options cost 0, 0.25 and 1; a third of the preferences affords the last one.
    likelihood = RewardWeights(accuracy=0.0, log_likelihood=1.0)
    behavior_cloning(
        gate,
        PlantedBackbone(),
        planted_images(),
        likelihood,
        lambda uniform, preferences: uniform.best_within(0.25 + 1.125 * preferences),
        seed=3,
    )
    assert share_of(gate, torch.where(PREFERENCES < 2 / 3, 1, 2)) > 0.95


def test_start_follows_from_the_seed():
    weights = []
    for seed in (1, 1, 2):
        gate = untrained("ff", all_budgets=False)
        clone(gate, make_task(reward=WEIGHTS), seed=seed)
        weights.append(torch.cat([p.detach().flatten() for p in gate.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- commands

COSTS = CostTable(options=BitOptions((0, 2, 3, 4, 8, 32)), layer_macs=(1,))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("ppo", {"num_envs": 64, "eval_every": 384}), ("gumbel", {"eval_every": 768})],
)
def test_first_validation_follows_the_start(tmp_path, method, settings):
    first = {}
    for start in ("uniform", "indifferent"):
        records, run = [], tmp_path / start
        settings |= {"start": start, "run_dir": run, "callback": records.append}
        dfs_rl.train_gate(None, "digits", method=method, timesteps=768, threads=1, **settings)
        first[start] = records[0]
        seen = json.loads((run / "training.json").read_text())["images_seen"]["gate"]
        assert seen == 128 + (pretraining_images(COSTS) if start == "uniform" else 0)
        assert first[start]["timesteps"] == 0
    assert first["uniform"]["accuracy"] > 85.0
    if method == "ppo":
        assert first["indifferent"]["accuracy"] < 30.0
    else:
        assert first["uniform"]["computation"] < 5.0 < first["indifferent"]["computation"]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (train_gumbel, ["--method", "dfs"]),
        (train_gumbel, ["--backbone-mode", "co-train"]),
        (main, ["--algo", "dqn"]),
        (main, ["--backbone-mode", "co-train"]),
        (main, ["--init-gate", "."]),
    ],
)
def test_uniform_start_is_refused(command, flags, refusal):
    assert "start is 'uniform'" in refusal(command, ["--start", "uniform", *flags])
