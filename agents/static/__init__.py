"""Learning one static bit table for all inputs."""

from collections.abc import Callable
from typing import NamedTuple

from dfs_rl.evaluation.static_tables.scoring import StaticTable


class EvaluatedTable(NamedTuple):
    """Static bit table that a method evaluated.

    Attributes:
        timesteps: Steps taken so far, including those of this table.
        table: The static bit table; within the budget, except for intermediate tables of a greedy
            search.
        accuracy: Accuracy on the batch in percent.
        computation: Computation in percent.
        reward: Reward of the episode; ``None`` for methods without episodes.
    """

    timesteps: int
    table: StaticTable
    accuracy: float
    computation: float
    reward: float | None


OnTable = Callable[[EvaluatedTable], bool]
"""Function that receives each evaluated table and returns whether to continue."""
