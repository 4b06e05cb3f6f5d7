"""Methods of ``train_static``, which find a static bit table; imports no torch."""

from collections.abc import Callable
from typing import Annotated, ClassVar, NamedTuple

from dfs_rl.agents.methods import Method, register_method
from dfs_rl.utils.registry import NameIn, Registry

STATIC_METHODS: Registry[type["StaticMethod"]] = Registry("static method")
"""Methods of ``train_static``, by the name that ``--method`` takes."""
StaticMethodName = Annotated[str, NameIn(STATIC_METHODS)]
_HAQ = "dfs_rl.agents.static.haq:"
_SEARCHES = "dfs_rl.agents.static.searches:"


class EvaluatedTable(NamedTuple):
    """Static bit table that a method evaluated; percentages are those on its batch."""

    timesteps: int  # so far, including those of this table
    table: tuple[int, ...]  # within the budget, but for intermediate tables of a greedy search
    accuracy: float
    computation: float
    reward: float | None  # None for methods without episodes


OnTable = Callable[[EvaluatedTable], bool]
"""Function that receives each evaluated table and returns whether to continue."""


class StaticMethod(Method):
    """A method of ``train_static``: its subclasses are registered, and have no instances."""

    command = "train_static"
    prefix = "static_"
    registry = STATIC_METHODS
    find: ClassVar[str]
    """Function that evaluates tables, ``module:name``.

    It takes a ``NetworkWideEnv`` with a budget, a number of episodes, a seed, and an ``OnTable``,
    which receives each table and ends the search by returning False.
    """
    continuous: ClassVar[bool] = False
    """True if the environment has continuous actions."""
    is_seeded: ClassVar[bool] = True
    """True if the table depends on the seed."""

    @staticmethod
    def max_timesteps(episodes: int, n_layers: int, n_options: int) -> int:
        """Return the number of steps of a whole search, or an upper bound on it."""
        del n_options
        return episodes * n_layers


@register_method("ddpg")
class _DDPG(StaticMethod):
    label, find, continuous = "static DDPG", _HAQ + "learn_ddpg", True


@register_method("td3")
class _TD3(StaticMethod):
    label, find, continuous = "static TD3", _HAQ + "learn_td3", True


@register_method("sac")
class _SAC(StaticMethod):
    label, find, continuous = "static SAC", _HAQ + "learn_sac", True


@register_method("ppo")
class _PPO(StaticMethod):
    label, find = "static PPO", _HAQ + "learn_ppo"


@register_method("greedy")
class _Greedy(StaticMethod):
    label, find, is_seeded = "static greedy", _SEARCHES + "descend", False

    @staticmethod
    def max_timesteps(episodes: int, n_layers: int, n_options: int) -> int:
        del episodes  # it goes from the highest options to the lowest
        return n_layers * (n_options - 1)


@register_method("search")
class _LocalSearch(StaticMethod):
    label, find, is_seeded = "static search", _SEARCHES + "climb", False
