"""Registry of the methods that find a static bit table."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.agents.static import OnTable, greedy, haq
from dfs_rl.envs.network_wide_env import NetworkWideEnv


class _Method(NamedTuple):
    """Method that finds a static bit table.

    Attributes:
        label: Name of its gate in tables and plots.
        continuous: True if the environment has continuous actions.
        find: Function of an environment with a budget, a number of episodes, a seed and the
            receiver of tables, which evaluates tables.
    """

    label: str
    continuous: bool
    find: Callable[[NetworkWideEnv, int, int, OnTable], None]


STATIC_METHODS: Mapping[StaticMethod, _Method] = {
    "ddpg": _Method("static DDPG", continuous=True, find=partial(haq.learn, "ddpg")),
    "td3": _Method("static TD3", continuous=True, find=partial(haq.learn, "td3")),
    "sac": _Method("static SAC", continuous=True, find=partial(haq.learn, "sac")),
    "ppo": _Method("static PPO", continuous=False, find=partial(haq.learn, "ppo")),
    "greedy": _Method("static greedy", continuous=False, find=greedy.descend),
}
