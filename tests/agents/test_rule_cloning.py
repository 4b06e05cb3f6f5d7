"""Cloned rules: the gate acts like them on new episodes, at every preference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfs_rl.agents import pretraining
from dfs_rl.costs import BitOptions
from dfs_rl.envs import make_task
from dfs_rl.envs.batched_episodes import BatchedEpisodes
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.networks import MLPGate
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from tests.helpers.toy_backbone import BITS
from tests.helpers.toy_env import toy_kwargs

OPTIONS = BitOptions(BITS)
N, KNOTS = 400, 9


def make_rules(conditioned):
    """Return rules whose options rise and whose second pass gets likelier with the preference."""
    rules = []
    for i in range(KNOTS if conditioned else 1):
        low = min(3, 1 + i // 3)
        second = RulePass(options=(3, low, 3, low), mirrored=True)
        passes = (RulePass(options=(low,) * 4), second)
        rules.append(Rule(passes=passes, thresholds=(0.4 + 0.1 * i / KNOTS,)))
    measured = BudgetConditioning() if conditioned else None
    return RuleGate(rules, answer="mean", options=OPTIONS, budget_conditioning=measured)


def agreement(gate, rules, task):
    """Return the share of decisions in which a gate acts like the rules, by their place."""
    episodes, rng = BatchedEpisodes(task, N), np.random.default_rng(3)
    conditioned = task.cost_weight_range is not None
    preferences = rng.random(N) if conditioned else None
    episodes.reset(rng.integers(len(task.images), size=N), preferences)
    same = {True: [], False: []}  # at the end of a pass, and before it
    while not episodes.ended.all():
        seen = {k: torch.from_numpy(v) for k, v in episodes.observation.items()}
        actions = np.zeros(N, dtype=np.int64)
        for layer in set(seen["layer"][~episodes.ended].tolist()):
            rows = np.flatnonzero(~episodes.ended & (seen["layer"] == layer).numpy())
            inputs = seen["features"][rows], layer, seen["context"][rows]
            actions[rows] = rules.decide(*inputs)
            same[layer == 4] += (gate.decide(*inputs).numpy() == actions[rows]).tolist()
        episodes.advance(actions)
    return {place: np.mean(each) for place, each in same.items()}


@pytest.mark.parametrize(("conditioned", "least"), [(False, 0.95), (True, 0.93)])
def test_a_gate_learns_rules(monkeypatch, conditioned, least):
    monkeypatch.setattr(pretraining, "EPISODES", 1024)  # enough for four layers
    monkeypatch.setattr(pretraining, "_RULE_STEPS", 400)
    rules = make_rules(conditioned)
    settings = replace(rules.passes, limit=3)  # more than the rules use
    weights = (1.0, 50.0) if conditioned else None
    task = make_task(**toy_kwargs(passes=settings, cost_weight_range=weights))
    torch.manual_seed(0)
    gate = MLPGate(
        (0,) * 4,
        OPTIONS,
        hidden=16,
        passes=settings,
        budget_conditioning=BudgetConditioning() if conditioned else None,
    )
    pretraining.clone_rules(gate, rules, task, seed=0)
    same = agreement(gate, rules, task)
    assert min(same.values()) > least, same


def test_settings_of_rules():
    assert make_rules(conditioned=True).passes == PassSettings(limit=2, mirrored=True)
