"""How long to search for the best static table; apart from the search, so that a command's help needs no torch."""

from dfs_rl.utils.config import Count, configuration


@configuration
class SearchLimits:
    """How long to search for the best static table.

    Attributes:
        images: Images that each table is scored on during the search, at least 1.
        tables: Tables scored during the search, at least 1.
        finalists: Best tables that are ranked again on the whole split, at least 1.
    """

    images: Count = 1000
    tables: Count = 600
    finalists: Count = 8
