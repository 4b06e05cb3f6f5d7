"""Greedy search by sensitivity: lower the layer that loses least, until the budget is kept."""

from dfs_rl.agents.static.tried import Tried, Watch
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.budget import table_computation
from dfs_rl.evaluation.static_tables.greedy import greedy_path


def descend(env: NetworkWideEnv, episodes: int, seed: int, watch: Watch) -> None:
    """Try the tables on the way down to the budget of the environment's task."""
    del episodes, seed  # it ends where the budget is kept, and draws nothing
    costs, budget = env.task.backbone.costs, env.task.budget
    assert budget is not None
    for step, table in enumerate(greedy_path(env.scorer, costs, budget)):
        tried = Tried(
            timesteps=step,
            table=table,
            accuracy=env.scorer.accuracy(table),
            computation=table_computation(costs, table),
            reward=None,
        )
        if not watch(tried):
            return
