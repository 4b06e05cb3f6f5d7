"""PPO without clipping of the gradient's norm, by default."""

import dfs_rl
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.utils.config import PositiveFloat, configuration


@dfs_rl.register_method("toy_ppo")
@configuration
class ToyPPOConfig(PPOConfig):
    """PPO with a bound on the divergence of an update.

    Attributes:
        target_kl: Bound on the divergence of the policy per update.
    """

    label = "toy PPO"

    target_kl: PositiveFloat = 0.5
