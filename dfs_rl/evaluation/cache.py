"""Cache of results shared by evaluations of gates over the same backbone and images."""

from typing import TYPE_CHECKING

from dfs_rl.evaluation.static_tables.scoring import StaticTable, StaticTableScore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfs_rl.evaluation.baselines.methods import MethodResult


class EvaluationCache:
    """Cache of the scores of static bit tables and the results of uniform settings.

    The cache changes no figure: an evaluation without it computes the same values.
    """

    def __init__(self) -> None:
        self._scores: dict[str, dict[StaticTable, StaticTableScore]] = {}
        self._uniform: dict[str, list[MethodResult]] = {}

    def scores(self, key: str) -> dict[StaticTable, StaticTableScore]:
        """Return the mutable mapping from static bit table to score.

        Args:
            key: Identifier of backbone, images, precision and batch size.
        """
        return self._scores.setdefault(key, {})

    def uniform(
        self, key: str, compute: "Callable[[], list[MethodResult]]"
    ) -> "list[MethodResult]":
        """Return the results of the uniform settings, computed on first use.

        Args:
            key: Identifier of backbone, images, precision and batch size.
            compute: Function that returns the results if the cache lacks them.
        """
        if key not in self._uniform:
            self._uniform[key] = compute()
        return self._uniform[key]
