"""Greedy search by sensitivity: lower the layer that loses least, until the budget is kept."""

from dfs_rl.agents.static.tried import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.budget import static_table_computation
from dfs_rl.evaluation.static_tables.greedy import greedy_path


def descend(env: NetworkWideEnv, episodes: int, seed: int, on_table: OnTable) -> None:
    """Try the tables on the way down to the budget of the environment's task."""
    del episodes, seed  # it ends where the budget is kept, and draws nothing
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
