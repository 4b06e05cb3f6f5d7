"""Dynamic fractional skipping: learned gates that choose each layer's bits for each input.

Importing this package registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0`` with
Gymnasium.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dfs_rl.envs.registration import register_envs

if TYPE_CHECKING:
    from dfs_rl.backbones import fractionalize as fractionalize
    from dfs_rl.gating.model import load as load
    from dfs_rl.training.ptq import calibrate as calibrate

try:
    __version__ = version("dfs-rl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "calibrate", "fractionalize", "load"]

_PUBLIC = {
    "calibrate": "dfs_rl.training.ptq",
    "fractionalize": "dfs_rl.backbones",
    "load": "dfs_rl.gating.model",
}

register_envs()


def __getattr__(name: str) -> object:
    """Import public functions on first use, to keep ``import dfs_rl`` and ``--help`` quick."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
