"""The ways to find a static table by name: learners of ``NetworkWide-v0``, and the greedy search that needs no learning."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.envs.network_wide_env import NetworkWideEnv
from dfs_rl.evaluation.static_tables.budget import table_computation
from dfs_rl.evaluation.static_tables.greedy import greedy_path
from dfs_rl.evaluation.static_tables.scoring import Table

WARM_UP = 20
"""Episodes of random actions before an off-policy learner begins, as in HAQ's code."""
NOISE, NOISE_DECAY = 0.5, 0.99
"""Standard deviation of HAQ's exploration noise, of an action in [0, 1], and what an episode leaves of it."""
HIDDEN = (64, 64)
"""Units of actor and critic; HAQ's code has 300 twice, which ten numbers do not need and which takes longer than the tables."""
UPDATES_PER_EPISODE = 16
"""Of an off-policy learner. HAQ makes one per layer of networks with some 50; one per layer of a network with three taught it nothing."""
EPISODES_PER_UPDATE = 16
"""Of PPO: enough tables for an advantage, few enough for dozens of updates."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A table that a method tried.

    Attributes:
        timesteps: Choices made so far, its own included.
        table: As it was tried: lowered to the budget by a learner, on the way down to it in a greedy search.
        accuracy: Percent of the batch.
        computation: Percent.
        reward: Of the episode; ``None`` where there are none.
    """

    timesteps: int
    table: Table
    accuracy: float
    computation: float
    reward: float | None


Watch = Callable[[Tried], bool]
"""Told of each table that is tried; says whether to go on."""


@dataclass(frozen=True, kw_only=True)
class _Method:
    """How a name on the command line finds a table.

    Attributes:
        label: What tables and plots call its gate.
        continuous: Whether it acts in the continuous form of the environment.
        find: Tries tables of an environment with a budget, for so many episodes from a seed.
    """

    label: str
    continuous: bool
    find: Callable[[NetworkWideEnv, int, int, Watch], None]


class DecayingNoise(NormalActionNoise):
    """Normal noise that fades from episode to episode once the warm-up is over.

    HAQ draws from a normal distribution truncated to the allowed actions; Stable-Baselines3 adds the noise and clips, which puts more
    weight on the ends. One action in [-1, 1], as Stable-Baselines3 scales them.
    """

    def __init__(self) -> None:
        self._episodes = 0
        super().__init__(mean=np.zeros(1), sigma=np.full(1, 2.0 * NOISE))

    def reset(self) -> None:
        """Note the end of an episode."""
        self._episodes += 1
        faded = NOISE_DECAY ** max(0, self._episodes - WARM_UP)
        self._sigma = np.full(1, 2.0 * NOISE * faded)


def build_learner(method: StaticMethod, env: NetworkWideEnv, *, seed: int) -> BaseAlgorithm:
    """Build the learner of that name; small networks, so it stays on the CPU.

    The reward comes at the end and an episode is a handful of layers: nothing is discounted, and off-policy learners take the
    return to the end of the episode as the target, as HAQ gives every step the reward of its episode.
    """
    n_layers = env.task.backbone.costs.n_layers
    shared: dict[str, Any] = {"gamma": 1.0, "seed": seed, "device": "cpu"}
    if method == "ppo":
        return PPO(
            "MlpPolicy",
            env,
            learning_rate=3e-3,  # there are only some dozen updates
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
        "learning_rate": 1e-3,  # of both; HAQ's actor has a tenth of it
        "batch_size": 64,
        "buffer_size": 128 * n_layers,
        "tau": 0.01,  # as HAQ's, like batch and buffer
        "policy_kwargs": {"net_arch": list(HIDDEN)},
    }
    if method == "sac":  # explores by itself
        return SAC("MlpPolicy", env, **shared)
    algorithm = DDPG if method == "ddpg" else TD3
    return algorithm("MlpPolicy", env, action_noise=DecayingNoise(), **shared)


class _Watching(BaseCallback):
    """Tells of each episode, and ends the training after so many or when asked to."""

    def __init__(self, watch: Watch, episodes: int) -> None:
        super().__init__()
        self._watch = watch
        self._left = episodes

    def _on_step(self) -> bool:
        if not self.locals["dones"][0]:
            return True
        info = self.locals["infos"][0]
        self._left -= 1
        go_on = self._watch(
            Tried(
                timesteps=self.num_timesteps,
                table=tuple(info["options"].tolist()),
                accuracy=info["accuracy"],
                computation=info["computation"],
                reward=float(self.locals["rewards"][0]),
            )
        )
        return go_on and self._left > 0


def _learn(
    method: StaticMethod, env: NetworkWideEnv, episodes: int, seed: int, watch: Watch
) -> None:
    model = build_learner(method, env, seed=seed)
    steps = episodes * env.task.backbone.costs.n_layers
    model.learn(steps, _Watching(watch, episodes), log_interval=sys.maxsize)


def _descend(env: NetworkWideEnv, episodes: int, seed: int, watch: Watch) -> None:
    del episodes, seed  # it ends where the budget is kept, and draws nothing
    costs, budget = env.task.backbone.costs, env.task.budget
    assert budget is not None
    for step, table in enumerate(greedy_path(env.scorer, costs, budget)):
        tried = Tried(
            timesteps=step,
            table=table,
            accuracy=env.scorer.accuracy(table),
            computation=table_computation(costs, table),
            reward=None,
        )
        if not watch(tried):
            return


STATIC_METHODS: Mapping[StaticMethod, _Method] = {
    "ddpg": _Method(label="static DDPG", continuous=True, find=partial(_learn, "ddpg")),
    "td3": _Method(label="static TD3", continuous=True, find=partial(_learn, "td3")),
    "sac": _Method(label="static SAC", continuous=True, find=partial(_learn, "sac")),
    "ppo": _Method(label="static PPO", continuous=False, find=partial(_learn, "ppo")),
    "greedy": _Method(label="static greedy", continuous=False, find=_descend),
}
