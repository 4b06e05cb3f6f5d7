"""Environments: Gymnasium's single and vector form and Stable-Baselines3's, over one implementation.

Importing this package registers ``dfs_rl/FractionalSkipping-v0``; ``gymnasium.make("envs:dfs_rl/FractionalSkipping-v0")``
does both at once.
"""

from envs.registration import ENV_ID, register_envs

__all__ = ["ENV_ID", "register_envs"]

register_envs()
