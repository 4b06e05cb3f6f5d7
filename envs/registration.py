"""Registration of the environments with Gymnasium."""

from gymnasium.envs.registration import register, registry

ENV_ID = "dfs_rl/FractionalSkipping-v0"
NETWORK_WIDE_ID = "dfs_rl/NetworkWide-v0"


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
