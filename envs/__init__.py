"""Environments in the forms of Gymnasium and Stable-Baselines3.

One environment chooses bit options for each image, one for the whole network.

``import dfs_rl`` registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0``;
``gymnasium.make("dfs_rl:dfs_rl/FractionalSkipping-v0")`` does both at once.
"""

import importlib
from typing import TYPE_CHECKING

from dfs_rl.envs.registration import ENV_ID, NETWORK_WIDE_ID, register_envs

if TYPE_CHECKING:
    from dfs_rl.envs.sb3_vec_env import SB3GatingVecEnv as SB3GatingVecEnv
    from dfs_rl.envs.task import make_task as make_task

__all__ = ["ENV_ID", "NETWORK_WIDE_ID", "SB3GatingVecEnv", "make_task", "register_envs"]

_PUBLIC = {"SB3GatingVecEnv": "dfs_rl.envs.sb3_vec_env", "make_task": "dfs_rl.envs.task"}


def __getattr__(name: str) -> object:
    """Import names that need torch on first use, so that ``import dfs_rl`` stays fast."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
