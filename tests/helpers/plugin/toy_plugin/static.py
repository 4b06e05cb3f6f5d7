"""Uniform tables from many bits to few, until one is within the budget."""

import dfs_rl
from dfs_rl.agents.static.methods import EvaluatedTable, StaticMethod
from dfs_rl.evaluation.static_tables.scoring import static_table_computation


@dfs_rl.register_method("toy_uniform")
class ToyUniform(StaticMethod):
    label, find, is_seeded = "toy uniform", f"{__name__}:search", False


def search(env, episodes, seed, on_table):
    costs = env.task.backbone.costs
    for steps, option in enumerate(reversed(range(len(costs.options)))):
        table = (option,) * costs.n_layers
        cost = static_table_computation(costs, table)
        found = EvaluatedTable(steps, table, env.scorer.accuracy(table), cost, reward=None)
        if not on_table(found) or cost <= env.task.budget:
            return
