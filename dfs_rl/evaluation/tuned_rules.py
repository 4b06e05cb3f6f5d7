"""Gates of the best threshold rules: for one budget, or for all."""

from collections.abc import Sequence

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.pass_outputs import PassOutputs
from dfs_rl.evaluation.rule_search import FoundRule, best_rule, search_rules, useful_settings
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import Rule, RuleGate, RulePass

_N_RULES, _N_BUDGETS = 40, 100
"""Largest number of rules of a gate for all budgets, and of budgets that show their range."""
_TOLERANCE = 0.001
"""Loss in the criterion for few sequences of settings: half as many, and as good on new images."""


def tuned_gate(
    searched: PassOutputs,
    measured: PassOutputs,
    costs: CostTable,
    candidates: Sequence[PassSettings],
    *,
    budget: float | None = None,
) -> RuleGate | None:
    """Return the gate of the best rules for all budgets, or of the best one within a budget.

    The rules for all budgets lie between the cheapest setting and the cheapest rule that is as good
    as the best, up to a tenth of a point. Their accuracy does not fall with their cost.

    Args:
        searched: Outputs on the images that the rules are chosen on.
        measured: Outputs on the val split, where the cost and accuracy of each rule are measured;
            they include those of the largest bit option at all layers.
        costs: Cost table of the backbone.
        candidates: Passes and answers to choose from, the first of equals.
        budget: Bound on the mean computation in percent; ``None`` for all budgets.

    Returns:
        The gate; ``None`` if no setting is within the budget.
    """
    if budget is not None:
        best = [(best_rule(searched, costs, budget, passes), passes) for passes in candidates]
        within = [(one, passes) for one, passes in best if one is not None]
        if not within:
            return None
        chosen, passes = max(within, key=lambda pair: pair[0].score)
        return _gate([chosen.rule], measured, costs, passes)
    useful = useful_settings(searched, costs)
    fronts = [_front(useful, costs, passes) for passes in candidates]
    front = max(fronts, key=lambda front: sum(found.score for found in front))
    passes = candidates[fronts.index(front)]
    enough = max(found.score for found in front) - _TOLERANCE
    most = next(found.computation for found in front if found.score >= enough)
    budgets = _budgets(front[0].computation, most, _N_RULES)
    rules: list[Rule] = []
    accuracy = 0.0
    for found in search_rules(useful, costs, budgets, passes, tolerance=_TOLERANCE):
        assert found is not None, "the least budget suffices for a pass"
        records = useful.records(found.rule, passes.answer, name="rule")
        if found.rule not in rules and records.accuracy >= accuracy:
            rules.append(found.rule)
            accuracy = records.accuracy
    return _gate(rules, measured, costs, passes)


def _front(outputs: PassOutputs, costs: CostTable, passes: PassSettings) -> list[FoundRule]:
    """Return the best rules within budgets from the cheapest pass to the dearest ones together."""
    spent = outputs.computations(costs).tolist()
    views = zip(spent, outputs.settings, strict=True)
    least = min(cost for cost, each in views if not each.mirrored)
    budgets = _budgets(least, sum(sorted(spent)[-passes.limit :]), _N_BUDGETS)
    found = search_rules(outputs, costs, budgets, passes, tolerance=_TOLERANCE)
    return [each for each in found if each is not None]


def _budgets(least: float, most: float, n: int) -> list[float]:
    """Return budgets from one to the other in equal steps of their logarithm."""
    return [least * (most / least) ** (i / (n - 1)) for i in range(n)]


def _gate(
    rules: Sequence[Rule], measured: PassOutputs, costs: CostTable, passes: PassSettings
) -> RuleGate:
    """Return a gate of rules, with the figures of each on the val split if there are several."""
    conditioning = None
    if len(rules) > 1:
        records = [measured.records(rule, passes.answer, name="rule") for rule in rules]
        full = (costs.options.full,) * costs.n_layers
        of_full = measured.settings.index(RulePass(options=full))
        conditioning = BudgetConditioning(
            computations=tuple(each.computation(costs).mean().item() for each in records),
            accuracies=tuple(each.accuracy for each in records),
            full_precision_accuracy=100.0 * measured.accuracies[of_full].item(),
        )
    return RuleGate(
        rules,
        answer=passes.answer,
        options=costs.options,
        exits=costs.exits_after,
        budget_conditioning=conditioning,
    )
