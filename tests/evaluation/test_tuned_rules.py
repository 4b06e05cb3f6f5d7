from itertools import pairwise

import pytest
import torch

from dfs_rl.evaluation.rule_search import useful_settings
from dfs_rl.evaluation.tuned_rules import tuned_gate
from dfs_rl.gating.passes import PassSettings
from tests.evaluation.test_rule_search import COSTS, LOW, MIDDLE, drawn

CANDIDATES = [PassSettings(limit=3, mirrored=True, answer=a) for a in ("mean", "last", "surest")]
AGENT, VAL = drawn(1500, seed=1), drawn(500, seed=2)
SEARCHED = VAL.with_images(AGENT)


@pytest.fixture(scope="module")
def gate():
    return tuned_gate(AGENT, VAL, COSTS, CANDIDATES)


def test_rules_become_better_with_their_cost(gate):
    assert gate.passes == CANDIDATES[0]  # independent errors average out
    assert 100 < len(gate.rules) <= 256 + len(SEARCHED.settings)
    assert len(set(gate.rules)) == len(gate.rules)
    spent = gate.budget_conditioning.computations
    assert all(a < b for a, b in pairwise(spent))
    records = [SEARCHED.records(rule, "mean", name="rule") for rule in gate.rules]
    scores = [each.accuracy / 100 + 0.1 * each.log_likelihood.mean().item() for each in records]
    assert all(a <= b + 0.002 for a, b in pairwise(scores))  # a pass counts 0.001
    assert spent[0] == pytest.approx(LOW)
    best = max(useful_settings(SEARCHED, COSTS).accuracies.tolist())
    assert records[-1].accuracy > 100 * best + 3


def test_figures_of_the_gate_are_those_on_val(gate):
    measured = gate.budget_conditioning
    for i in (0, 7, len(gate.rules) - 1):
        records = VAL.records(gate.rules[i], "mean", name="rule")
        assert measured.accuracies[i] == pytest.approx(records.accuracy)
        assert measured.computations[i] == pytest.approx(records.computation(COSTS).mean().item())
    full = (VAL.logits[2].argmax(dim=1) == VAL.labels).double().mean().item()
    assert measured.full_precision_accuracy == pytest.approx(100 * full)


def test_a_budget_selects_a_rule_within_it(gate):
    measured = gate.budget_conditioning
    for budget in torch.linspace(LOW, 2 * MIDDLE, 25).tolist():
        gate.preference = measured.preference_for_budget(budget)
        spent = VAL.records(gate.rule, "mean", name="rule").computation(COSTS).mean().item()
        assert spent <= budget + 1e-9
    gate.preference = 1.0


def test_rules_for_all_budgets_are_as_good_as_a_rule_for_one(gate):
    def score(rule):
        records = SEARCHED.records(rule, "mean", name="rule")
        gained = records.accuracy / 100 + 0.1 * records.log_likelihood.mean().item()
        return gained - 0.001 * (len(rule.passes) - 1)

    lost = []
    for budget in torch.linspace(1.05 * LOW, MIDDLE, 20).tolist():
        gate.preference = gate.budget_conditioning.preference_for_budget(budget)
        alone = tuned_gate(AGENT, VAL, COSTS, CANDIDATES[:1], budget=budget)
        lost.append(score(alone.rule) - score(gate.rule))
    gate.preference = 1.0
    assert max(lost) < 0.004  # the budgets of the rules are steps apart
    assert sum(lost) / len(lost) < 0.001


def test_a_setting_is_used_from_its_own_cost_on(gate):
    costs = gate.budget_conditioning.computations
    for cost in SEARCHED.computations(COSTS).unique().tolist():
        if LOW < cost < costs[-1]:
            alone = tuned_gate(AGENT, VAL, COSTS, CANDIDATES[:1], budget=cost)
            gate.preference = gate.budget_conditioning.preference_for_budget(cost)
            assert gate.rule == alone.rule
    gate.preference = 1.0


def test_gate_for_one_budget():
    gate = tuned_gate(AGENT, VAL, COSTS, CANDIDATES, budget=20.0)
    assert gate.budget_conditioning is None
    records = VAL.records(gate.rule, gate.passes.answer, name="rule")
    assert 19.0 < records.computation(COSTS).mean().item() <= 20.0
    assert tuned_gate(AGENT, VAL, COSTS, CANDIDATES, budget=LOW - 0.1) is None
    single = tuned_gate(AGENT, VAL, COSTS, [PassSettings(limit=1)], budget=MIDDLE)
    assert single.passes == PassSettings()
    assert [each.options for each in single.rule.passes] == [(1, 1)]
