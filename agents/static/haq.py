"""HAQ (Wang et al., CVPR 2019): reinforcement learning of one static bit table, layer by layer.

The paper uses DDPG; TD3, SAC and PPO train on the same environment, ``NetworkWide-v0``.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

from dfs_rl.agents.static.methods import EvaluatedTable, OnTable
from dfs_rl.envs.network_wide_env import NetworkWideEnv

WARM_UP = 20
"""Episodes of random actions before the first off-policy update, as in HAQ's code."""
NOISE, NOISE_DECAY = 0.5, 0.99
"""Standard deviation of HAQ's exploration noise in [0, 1], and its factor per episode."""
HIDDEN = (64, 64)
"""Hidden units of actor and critic; HAQ's code has (300, 300), more than ten inputs need."""
UPDATES_PER_EPISODE = 16
"""Off-policy updates per episode; HAQ makes one per layer, too few with three layers."""
EPISODES_PER_UPDATE = 16
"""Episodes per update of PPO: enough for advantages, and few enough for dozens of updates."""


class DecayingNoise(NormalActionNoise):
    """Normal noise for one action in [-1, 1] that decays with each episode after the warm-up.

    HAQ samples from a normal distribution truncated to the allowed actions. Stable-Baselines3 adds
    noise and clips, which puts more probability on the ends of the range.
    """

    def __init__(self) -> None:
        self._episodes = 0
        super().__init__(mean=np.zeros(1), sigma=np.full(1, 2.0 * NOISE))

    def reset(self) -> None:
        """Decay the noise at the end of an episode."""
        self._episodes += 1
        faded = NOISE_DECAY ** max(0, self._episodes - WARM_UP)
        self._sigma = np.full(1, 2.0 * NOISE * faded)


def build_learner(
    algorithm: type[BaseAlgorithm], env: NetworkWideEnv, *, seed: int
) -> BaseAlgorithm:
    """Build an algorithm, on the CPU because its networks are small.

    Short episodes have one reward at their end, so it is not discounted, and off-policy targets
    are returns to the end of the episode, as in HAQ.
    """
    n_layers = env.task.backbone.costs.n_layers
    shared: dict[str, Any] = {"gamma": 1.0, "seed": seed, "device": "cpu"}
    if algorithm is PPO:
        return PPO(
            "MlpPolicy",
            env,
            learning_rate=3e-3,  # a training has only a few dozen updates
            n_steps=EPISODES_PER_UPDATE * n_layers,
            batch_size=EPISODES_PER_UPDATE * n_layers // 2,
            ent_coef=0.01,
            **shared,
        )
    shared |= {
        "learning_starts": WARM_UP * n_layers,
        "train_freq": (1, "episode"),
        "gradient_steps": UPDATES_PER_EPISODE,
        "n_steps": n_layers,
        "learning_rate": 1e-3,  # of actor and critic; HAQ's actor has a tenth of it
        "batch_size": 64,
        "buffer_size": 128 * n_layers,
        "tau": 0.01,  # as in HAQ, like the sizes of batch and buffer
        "policy_kwargs": {"net_arch": list(HIDDEN)},
    }
    if algorithm is not SAC:  # which explores without added noise
        shared["action_noise"] = DecayingNoise()
    return algorithm("MlpPolicy", env, **shared)


class _EpisodeCallback(BaseCallback):
    """Report the table of each episode; stop after ``episodes`` episodes or on request."""

    def __init__(self, on_table: OnTable, episodes: int) -> None:
        super().__init__()
        self._on_table = on_table
        self._left = episodes

    def _on_step(self) -> bool:
        if not self.locals["dones"][0]:
            return True
        info = self.locals["infos"][0]
        self._left -= 1
        evaluated = EvaluatedTable(
            timesteps=self.num_timesteps,
            table=tuple(info["options"].tolist()),
            accuracy=info["accuracy"],
            computation=info["computation"],
            reward=float(self.locals["rewards"][0]),
        )
        return self._on_table(evaluated) and self._left > 0


def learn(
    algorithm: type[BaseAlgorithm], env: NetworkWideEnv, episodes: int, seed: int, on_table: OnTable
) -> None:
    """Train an algorithm for a number of episodes; ``on_table`` may end it earlier."""
    model = build_learner(algorithm, env, seed=seed)
    steps = episodes * env.task.backbone.costs.n_layers
    model.learn(steps, _EpisodeCallback(on_table, episodes), log_interval=sys.maxsize)


learn_ddpg, learn_td3 = partial(learn, DDPG), partial(learn, TD3)
learn_sac, learn_ppo = partial(learn, SAC), partial(learn, PPO)
