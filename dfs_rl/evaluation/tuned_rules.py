"""Gates of tuned rules: the best one for a budget, or one for each of several."""

import math
from collections.abc import Sequence

from dfs_rl.costs import CostTable
from dfs_rl.evaluation.pass_outputs import PassOutputs
from dfs_rl.evaluation.rule_search import FoundRule, best_rule, search_rules, useful_settings
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.passes import PassSettings
from dfs_rl.gating.rules import Rule, RuleGate, RulePass
from dfs_rl.utils.constants import Stopping

_N_RULES, _N_BUDGETS = 256, 100
"""Number of budgets, each with a rule in a gate for all budgets, and of those for their range."""
_LEAST_GAIN = 0.001  # gain in the criterion for which a rule may cost twice as much


def tuned_gate(
    agent: PassOutputs,
    val: PassOutputs,
    costs: CostTable,
    candidates: Sequence[PassSettings],
    *,
    budget: float | None = None,
    stopping: Stopping = "confidence",
) -> RuleGate | None:
    """Return the gate of the best rules for all budgets, or of the best one within a budget.

    The rules for all budgets begin with the cheapest setting, and end where twice the cost gains
    less than a tenth of a point. Each is better than those that cost less.

    The rules are chosen on the outputs of both splits, while budgets, and the figures of a gate for
    all budgets, are those of val. ``candidates`` are passes and answers to choose from, the first
    of equals. ``budget`` bounds the mean computation in percent, None is for all budgets; if no
    setting is within it, the result is None. With the ``stopping`` by gain, the predictions are
    fitted to the agent split alone.
    """
    outputs = val.with_images(agent)
    if budget is not None:
        best = [
            best_rule(outputs, costs, budget, one, n_costed=len(val), stopping=stopping)
            for one in candidates
        ]
        pairs = zip(best, candidates, strict=True)
        within = [(one, passes) for one, passes in pairs if one is not None]
        if not within:
            return None
        chosen, passes = max(within, key=lambda pair: pair[0].score)
        return _gate([chosen.rule], val, costs, passes)
    outputs = useful_settings(outputs, costs)

    def search(budgets: Sequence[float], passes: PassSettings) -> list[FoundRule]:
        rules = search_rules(outputs, costs, budgets, passes, n_costed=len(val), stopping=stopping)
        return [rule for rule in rules if rule is not None]

    spent = outputs.computations(costs).tolist()
    views = zip(spent, outputs.settings, strict=True)
    least = min(cost for cost, each in views if not each.mirrored)
    budgets = _budgets(least, sum(sorted(spent)[-candidates[0].limit :]), _N_BUDGETS)
    fronts = [(search(budgets, passes), passes) for passes in candidates]
    front, passes = max(fronts, key=lambda pair: sum(found.score for found in pair[0]))
    last = max(front, key=lambda one: one.score - _LEAST_GAIN * math.log2(one.computation))
    # The accuracy can jump where a setting becomes affordable.
    jumps = [cost for cost in spent if least < cost < last.computation]
    found = search(sorted([*_budgets(least, last.computation, _N_RULES), *jumps]), passes)
    rules = {one.computation: one.rule for one in found}  # each once
    return _gate(list(rules.values()), val, costs, passes)


def _budgets(least: float, most: float, n: int) -> list[float]:
    """Return budgets in equal steps of their logarithm."""
    return [least * (most / least) ** (i / (n - 1)) for i in range(n)]


def _gate(
    rules: Sequence[Rule], val: PassOutputs, costs: CostTable, passes: PassSettings
) -> RuleGate:
    """Return a gate of rules; several have their figures on the val split."""
    conditioning = None
    if len(rules) > 1:
        records = [val.records(rule, passes.answer, name="rule") for rule in rules]
        full = RulePass(options=(costs.options.full,) * costs.n_layers)
        conditioning = BudgetConditioning(
            computations=tuple(each.computation(costs).mean().item() for each in records),
            accuracies=tuple(each.accuracy for each in records),
            full_precision_accuracy=100.0 * val.accuracies[val.settings.index(full)].item(),
        )
    return RuleGate(
        rules,
        answer=passes.answer,
        options=costs.options,
        exits=costs.exits_after,
        budget_conditioning=conditioning,
    )
