"""Greedy search by sensitivity: lower the least sensitive layer until the budget is met."""

from dfs_rl.agents.static.tried import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.budget import static_table_computation
from dfs_rl.evaluation.static_tables.greedy import greedy_path


def descend(env: NetworkWideEnv, episodes: int, seed: int, on_table: OnTable) -> None:
    """Run a greedy descent from the most bits to the budget of the environment's task.

    Args:
        env: The environment; its task has a budget.
        episodes: Unused; the search ends at the budget.
        seed: Unused; the search is deterministic.
        on_table: Receives each table; ends the search by returning False.
    """
    del episodes, seed  # the search ends at the budget and is deterministic
    costs, budget = env.task.backbone.costs, env.task.budget
    assert budget is not None
    for step, table in enumerate(greedy_path(env.scorer, costs, budget)):
        tried = EvaluatedTable(
            timesteps=step,
            table=table,
            accuracy=env.scorer.accuracy(table),
            computation=static_table_computation(costs, table),
            reward=None,
        )
        if not on_table(tried):
            return
