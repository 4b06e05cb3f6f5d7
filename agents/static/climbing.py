"""Local search for a static bit table, which also starts from tables that skip layers or exit.

On a network that was trained at many depths and bits this is the search of once-for-all networks
(Cai et al., ICLR 2020): the best sub-network within a budget, without training.
"""

from collections.abc import Iterable

from dfs_rl.agents.static.methods import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.scoring import (
    StaticTable,
    StaticTableScore,
    static_table_computation,
)
from dfs_rl.evaluation.static_tables.search import climb_tables
from dfs_rl.evaluation.static_tables.shortened import shortened_tables


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The search was asked to stop."""


class _ReportingScorer:
    """Scorer of the environment that reports each new table."""

    def __init__(self, env: NetworkWideEnv, on_table: OnTable) -> None:
        self._env, self._on_table = env, on_table
        self.scores = env.scorer.scores

    def score(self, tables: Iterable[StaticTable]) -> list[StaticTableScore]:
        """Return the score of each table, and report those that are new."""
        wanted = list(tables)
        new = [table for table in dict.fromkeys(wanted) if table not in self.scores]
        scores = self._env.scorer.score(wanted)
        costs = self._env.task.backbone.costs
        first = len(self.scores) - len(new) + 1
        for number, table in enumerate(new, start=first):
            accuracy = self._env.scorer.accuracy(table)
            computation = static_table_computation(costs, table)
            steps = number * costs.n_layers
            if not self._on_table(EvaluatedTable(steps, table, accuracy, computation, reward=None)):
                raise _Stopped
        return scores


def climb(env: NetworkWideEnv, episodes: int, _seed: int, on_table: OnTable) -> None:
    """Try at most ``episodes`` tables within the budget of the environment's task."""
    backbone, budget = env.task.backbone, env.task.budget
    assert budget is not None
    try:
        climb_tables(
            _ReportingScorer(env, on_table),
            backbone.costs,
            budget,
            initial_tables=shortened_tables(backbone, env.task.images),
            limit=episodes,
        )
    except _Stopped:
        return
