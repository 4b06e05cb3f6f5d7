"""Registration of the environments; it imports next to nothing, so that it costs nothing where they are not used."""

ENV_ID = "dfs_rl/FractionalSkipping-v0"
NETWORK_WIDE_ID = "dfs_rl/NetworkWide-v0"


def register_envs() -> None:
    """Make ``gymnasium.make`` and ``make_vec`` know the environments; calling it again changes nothing."""
    # From the submodule, because a plugin runs while the package gymnasium itself is still being imported.
    from gymnasium.envs.registration import register, registry

    if ENV_ID in registry:
        return
    register(
        id=ENV_ID,
        entry_point="envs.single:FractionalSkippingEnv",
        vector_entry_point="envs.vector:FractionalSkippingVectorEnv",
    )
    register(id=NETWORK_WIDE_ID, entry_point="envs.network_wide:NetworkWideEnv")
