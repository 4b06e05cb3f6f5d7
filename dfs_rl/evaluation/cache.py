"""What evaluations of gates over the same backbone and images have in common, computed once."""

from typing import TYPE_CHECKING

from dfs_rl.evaluation.static_tables.scoring import StaticTable, StaticTableScore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfs_rl.evaluation.baselines.methods import MethodResult


class EvaluationCache:
    """Scores of static tables and uniform settings, by what they are of.

    It changes no figure: an evaluation that finds something here would have computed the same.
    """

    def __init__(self) -> None:
        self._scores: dict[str, dict[StaticTable, StaticTableScore]] = {}
        self._uniform: dict[str, list[MethodResult]] = {}

    def scores(self, key: str) -> dict[StaticTable, StaticTableScore]:
        """Return the scores known so far, to be read and added to.

        Args:
            key: Names backbone, images, precision and batch size.
        """
        return self._scores.setdefault(key, {})

    def uniform(
        self, key: str, compute: "Callable[[], list[MethodResult]]"
    ) -> "list[MethodResult]":
        """Return the uniform settings, computed on first use."""
        if key not in self._uniform:
            self._uniform[key] = compute()
        return self._uniform[key]
