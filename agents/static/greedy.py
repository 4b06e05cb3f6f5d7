"""Greedy search by sensitivity: lower the least sensitive layer until the budget is met."""

from dfs_rl.agents.static.methods import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.scoring import static_table_computation
from dfs_rl.evaluation.static_tables.search import greedy_path


def descend(env: NetworkWideEnv, _episodes: int, _seed: int, on_table: OnTable) -> None:
    """Descend from the most expensive table to the budget of the environment's task."""
    costs, budget = env.task.backbone.costs, env.task.budget
    assert budget is not None
    for step, table in enumerate(greedy_path(env.scorer, costs, budget)):
        accuracy = env.scorer.accuracy(table)
        computation = static_table_computation(costs, table)
        if not on_table(EvaluatedTable(step, table, accuracy, computation, reward=None)):
            return
