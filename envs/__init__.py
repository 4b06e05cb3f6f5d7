"""Environments: bits for each image, in Gymnasium's single and vector form and Stable-Baselines3's, and bits for the whole network.

Importing this package registers ``dfs_rl/FractionalSkipping-v0`` and ``dfs_rl/NetworkWide-v0``;
``gymnasium.make("envs:dfs_rl/FractionalSkipping-v0")`` does both at once.
"""

from envs.registration import ENV_ID, NETWORK_WIDE_ID, register_envs

__all__ = ["ENV_ID", "NETWORK_WIDE_ID", "register_envs"]

register_envs()
