"""Environments in the forms of Gymnasium and Stable-Baselines3.

One environment chooses bit options for each image, one for the whole network.

``import dfs_rl`` registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0``;
``gymnasium.make("dfs_rl:dfs_rl/FractionalSkipping-v0")`` does both at once.
"""

import importlib
from typing import TYPE_CHECKING

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv as SB3GatingVecEnv
    from dfs_rl.envs.task import make_task as make_task

__all__ = ["ENV_ID", "NETWORK_WIDE_ID", "SB3GatingVecEnv", "make_task", "register_envs"]

ENV_ID = "dfs_rl/FractionalSkipping-v0"
NETWORK_WIDE_ID = "dfs_rl/NetworkWide-v0"
_PUBLIC = {"SB3GatingVecEnv": "dfs_rl.envs.sb3_vec_env", "make_task": "dfs_rl.envs.task"}


def __getattr__(name: str) -> object:
    """Import names that need torch on first use, so that ``import dfs_rl`` stays fast."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_envs() -> None:
    """Register the environments with Gymnasium; a second call changes nothing."""
    if ENV_ID in registry:
        return
    register(
        id=ENV_ID,
        entry_point="dfs_rl.envs.gating_env:FractionalSkippingEnv",
        vector_entry_point="dfs_rl.envs.gating_vector_env:FractionalSkippingVectorEnv",
    )
    register(id=NETWORK_WIDE_ID, entry_point="dfs_rl.envs.network_wide_env:NetworkWideEnv")
