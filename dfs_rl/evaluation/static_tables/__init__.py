"""Static bit tables: scoring, fitting to a budget, search."""

from dfs_rl.utils.config import PositiveInt, configuration


@configuration
class SearchConfig:  # imports no torch, for quick help pages of the commands that have it
    """Limits of the search for the best static bit table.

    Attributes:
        images: Images that score each table during the search, at least 1.
        tables: Number of tables that the search scores, at least 1.
        finalists: Number of best tables that the whole split ranks again, at least 1.
    """

    images: PositiveInt = 1000
    tables: PositiveInt = 600
    finalists: PositiveInt = 8
