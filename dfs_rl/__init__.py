"""Dynamic fractional skipping: learned gates that choose each layer's bits for each input.

Importing this package registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0`` with
Gymnasium, and imports the plugins that are installed.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

from dfs_rl.envs import register_envs
from dfs_rl.utils.registry import load_plugins

if TYPE_CHECKING:
    from dfs_rl.agents.methods import register_method as register_method
    from dfs_rl.backbones import fractionalize as fractionalize
    from dfs_rl.backbones import register_backbone as register_backbone
    from dfs_rl.costs import BitOptions as BitOptions
    from dfs_rl.costs import register_cost_model as register_cost_model
    from dfs_rl.data import load_dataset as load_dataset
    from dfs_rl.data import register_dataset as register_dataset
    from dfs_rl.experiments.api import compare as compare
    from dfs_rl.experiments.api import evaluate as evaluate
    from dfs_rl.experiments.api import gate_from_sb3 as gate_from_sb3
    from dfs_rl.experiments.api import train_backbone as train_backbone
    from dfs_rl.experiments.api import train_gate as train_gate
    from dfs_rl.experiments.deployment import profile as profile
    from dfs_rl.experiments.hub import push_to_hub as push_to_hub
    from dfs_rl.gating.base import Gate as Gate
    from dfs_rl.gating.loading import load as load
    from dfs_rl.gating.networks import LearnedGate as LearnedGate
    from dfs_rl.gating.networks import register_gate as register_gate
    from dfs_rl.gating.reward import register_reward_term as register_reward_term
    from dfs_rl.runtime.export import export as export
    from dfs_rl.training.ptq import calibrate as calibrate

try:
    __version__ = version("dfs-rl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "BitOptions": "costs",
    "Gate": "gating.base",
    "LearnedGate": "gating.networks",
    "calibrate": "training.ptq",
    "compare": "experiments.api",
    "evaluate": "experiments.api",
    "export": "runtime.export",
    "fractionalize": "backbones",
    "gate_from_sb3": "experiments.api",
    "load": "gating.loading",
    "load_dataset": "data",
    "profile": "experiments.deployment",
    "push_to_hub": "experiments.hub",
    "register_backbone": "backbones",
    "register_cost_model": "costs",
    "register_dataset": "data",
    "register_gate": "gating.networks",
    "register_method": "agents.methods",
    "register_reward_term": "gating.reward",
    "train_backbone": "experiments.api",
    "train_gate": "experiments.api",
}
"""Modules of the public names; imported at first use, to keep ``import dfs_rl`` quick."""

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import public names on first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"dfs_rl.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Package whose functions keep their names when the commands of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, unless it is a module that would hide a public function."""
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Pickle the package by its name, as cloudpickle does with modules of the usual class."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
register_envs()
load_plugins()
