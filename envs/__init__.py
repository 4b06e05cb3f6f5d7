"""Environments: bits for each image, in Gymnasium's single and vector form and Stable-Baselines3's, and bits for the whole network.

Importing this package registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0``;
``gymnasium.make("envs:dfs_rl/FractionalSkipping-v0")`` does both at once.
"""

from typing import TYPE_CHECKING

from envs.registration import ENV_ID, NETWORK_WIDE_ID, register_envs

if TYPE_CHECKING:
    from envs.sb3 import SB3GatingVecEnv as SB3GatingVecEnv
    from envs.task import make_task as make_task

__all__ = ["ENV_ID", "NETWORK_WIDE_ID", "SB3GatingVecEnv", "make_task", "register_envs"]

register_envs()


def __getattr__(name: str) -> object:
    """Import what needs torch on first use, so that registration stays free of it."""
    if name == "SB3GatingVecEnv":
        from envs.sb3 import SB3GatingVecEnv

        return SB3GatingVecEnv
    if name == "make_task":
        from envs.task import make_task

        return make_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
