"""What evaluations of gates over the same backbone and images have in common, computed once."""

from typing import TYPE_CHECKING

from dfs_rl.evaluation.static_tables.scoring import Table, TableScore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfs_rl.evaluation.baselines.methods import Method


class Memory:
    """Scores of static tables and uniform settings, by what they are of.

    It changes no figure: an evaluation that finds something here would have computed the same.
    """

    def __init__(self) -> None:
        self._scores: dict[str, dict[Table, TableScore]] = {}
        self._uniform: dict[str, list[Method]] = {}

    def scores(self, of: str) -> dict[Table, TableScore]:
        """Return the scores known so far, to be read and added to.

        Args:
            of: Names backbone, images, precision and batch size.
        """
        return self._scores.setdefault(of, {})

    def uniform(self, of: str, compute: "Callable[[], list[Method]]") -> "list[Method]":
        """Return the uniform settings, computed on first use."""
        if of not in self._uniform:
            self._uniform[of] = compute()
        return self._uniform[of]
