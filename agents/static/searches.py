"""Searches for a static bit table, which draw nothing at random.

On a network that was trained at many depths and bits, ``climb`` is the search of once-for-all
networks (Cai et al., ICLR 2020): the best sub-network within a budget, without training.
"""

from dfs_rl.agents.static.methods import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.scoring import StaticTable, static_table_computation
from dfs_rl.evaluation.static_tables.search import climb_tables, greedy_path
from dfs_rl.evaluation.static_tables.shortened import shortened_tables


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The search was asked to stop."""


def climb(env: NetworkWideEnv, episodes: int, _seed: int, on_table: OnTable) -> None:
    """Try at most ``episodes`` tables within the budget, also ones that skip layers or exit."""
    backbone, budget = env.task.backbone, env.task.budget
    assert budget is not None
    n_layers = backbone.costs.n_layers

    def report(number: int, table: StaticTable) -> None:
        if not _report(env, number * n_layers, table, on_table):
            raise _Stopped

    try:
        climb_tables(
            env.scorer,
            backbone.costs,
            budget,
            initial_tables=shortened_tables(backbone, env.task.images),
            limit=episodes,
            on_scored=report,
        )
    except _Stopped:
        return


def descend(env: NetworkWideEnv, _episodes: int, _seed: int, on_table: OnTable) -> None:
    """Lower the least sensitive layer of the most expensive table until the budget is met."""
    budget = env.task.budget
    assert budget is not None
    for step, table in enumerate(greedy_path(env.scorer, env.task.backbone.costs, budget)):
        if not _report(env, step, table, on_table):
            return


def _report(env: NetworkWideEnv, timesteps: int, table: StaticTable, on_table: OnTable) -> bool:
    """Report a scored table, and return whether to continue."""
    accuracy = env.scorer.accuracy(table)
    computation = static_table_computation(env.task.backbone.costs, table)
    return on_table(EvaluatedTable(timesteps, table, accuracy, computation, reward=None))
