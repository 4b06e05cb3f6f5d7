"""How long to search for the best static table; apart from the search, so that a command's help needs no torch."""

from dataclasses import dataclass

from dfs_rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How long to search for the best static table.

    Attributes:
        images: Images that each table is scored on during the search, at least 1.
        tables: Tables scored during the search, at least 1.
        finalists: Best tables that are ranked again on the whole split, at least 1.
    """

    images: int = 1000
    tables: int = 600
    finalists: int = 8

    def __post_init__(self) -> None:
        for name in ("images", "tables", "finalists"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"search.{name} is {value}; allowed is 1 or more.")
