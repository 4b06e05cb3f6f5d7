"""How long to search for the best static table; apart from the search, so that a command's help needs no torch."""

from dfs_rl.utils.config import PositiveInt, configuration


@configuration
class SearchConfig:
    """How long to search for the best static table.

    Attributes:
        images: Images that each table is scored on during the search, at least 1.
        tables: Tables scored during the search, at least 1.
        finalists: Best tables that are ranked again on the whole split, at least 1.
    """

    images: PositiveInt = 1000
    tables: PositiveInt = 600
    finalists: PositiveInt = 8
