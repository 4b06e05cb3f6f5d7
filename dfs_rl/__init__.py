"""Dynamic fractional skipping: learn, per input, how many bits each layer of a network deserves."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfs_rl.gating.model import load as load

try:
    __version__ = version("dfs-rl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import ``load`` on first use, so that ``import dfs_rl`` stays free of torch."""
    if name == "load":
        from dfs_rl.gating.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
