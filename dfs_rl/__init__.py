"""Dynamic fractional skipping: learn, per input, how many bits each layer of a network deserves."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

# Read once, when torch loads OpenMP: workers that spin while another process wants their core make
# torch slower by an order of magnitude. Whoever sets it beforehand keeps their choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from dfs_rl.backbones import calibrate as calibrate
    from dfs_rl.backbones import fractionalize as fractionalize
    from dfs_rl.gating.model import load as load

try:
    __version__ = version("dfs-rl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "calibrate", "fractionalize", "load"]


def __getattr__(name: str) -> object:
    """Import what needs torch on first use, so that ``import dfs_rl`` stays free of it."""
    if name == "load":
        from dfs_rl.gating.model import load

        return load
    if name in ("calibrate", "fractionalize"):
        from dfs_rl import backbones

        return getattr(backbones, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
