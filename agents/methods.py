"""Registry of the methods that learn a gate or a static bit table; imports no torch."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from dfs_rl.errors import ConfigError
from dfs_rl.utils.registry import Registry

MethodT = TypeVar("MethodT", bound=type["Method"])
METHODS: Registry[type["Method"]] = Registry("method")
"""All methods, by the name that ``train_gate`` takes."""


class Method:
    """A method: an ``AlgorithmConfig``, a ``SupervisedConfig`` or a ``StaticMethod``."""

    command: ClassVar[str]
    """Command that learns with methods of this kind."""
    setting: ClassVar[str] = "method"
    """Setting of the command that takes the name."""
    prefix: ClassVar[str] = ""
    """Prefix of the name in ``train_gate``."""
    registry: ClassVar[Registry[Any]]
    """Methods of this kind, by name."""
    label: ClassVar[str]
    """Name of the gates in tables and plots."""


def register_method(name: str) -> Callable[[MethodT], MethodT]:
    """Register a method of ``train_agent``, ``train_gumbel`` or ``train_static``.

    It is then a choice of the command's ``--algo`` or ``--method``, of ``compare --gates``, of
    ``train_gate`` and of sweeps. The decorated class extends that of the closest built-in method;
    fields of a configuration are hyperparameters with flags, and for an algorithm of
    Stable-Baselines3 arguments of its constructor::

        @register_method("my_ppo")
        @configuration
        class MyPPOConfig(PPOConfig):
            label = "my PPO"
            algorithm = "my_package:MyPPO"

            target_kl: PositiveFloat = 0.01

    Args:
        name: Its name: lower-case letters, digits and underscores.

    Raises:
        ConfigError: If the name is taken or malformed, or the method is no such class.
    """

    def register(method: MethodT) -> MethodT:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise ConfigError(f"method {name!r} is {method!r}; allowed is a subclass of a method.")
        METHODS.add(method.prefix + name, method)
        method.registry.add(name, method)
        return method

    return register
