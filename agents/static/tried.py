"""Bit tables that a method tries, and the function that sees each of them."""

from collections.abc import Callable
from dataclasses import dataclass

from dfs_rl.evaluation.static_tables.scoring import StaticTable


@dataclass(frozen=True, kw_only=True)
class EvaluatedTable:
    """A table that a method tried.

    Attributes:
        timesteps: Choices made so far, including those of this table.
        table: Lowered to the budget by a learner; above it on the way of a greedy search.
        accuracy: Percent of the batch.
        computation: Percent.
        reward: Of the episode; ``None`` without episodes.
    """

    timesteps: int
    table: StaticTable
    accuracy: float
    computation: float
    reward: float | None


OnTable = Callable[[EvaluatedTable], bool]
"""Receives each table that is tried; returns whether to go on."""
