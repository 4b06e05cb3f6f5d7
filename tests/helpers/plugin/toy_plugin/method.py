"""PPO without clipping of the gradient's norm, by default."""

import dfs_rl
from dfs_rl.agents.hyperparameters import PPOConfig
from dfs_rl.utils.config import PositiveFloat, configuration


@dfs_rl.register_method("toy_ppo")
@configuration
class ToyPPOConfig(PPOConfig):
    label = "toy PPO"
    target_kl: PositiveFloat = 0.5  # a bound on the divergence of the policy per update
