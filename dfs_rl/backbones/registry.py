"""Registry of backbones: by name for training, by family for storage.

A third party adds a backbone in one file::

    @register_backbone("convnext_tiny", ConvNextConfig, blocks=(3, 3, 9, 3))
    class ConvNext(Network):
        family = "convnext"
        ...
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar, get_args

from dfs_rl.backbones.base import Backbone
from dfs_rl.data import ChannelStatistics
from dfs_rl.errors import ConfigError
from dfs_rl.utils.constants import Recipe

Maker = Callable[[Any, ChannelStatistics], Backbone]
MakerT = TypeVar("MakerT", bound=Callable[..., Backbone])

SETTINGS = ("first_block", "granularity", "stem", "patch", "heads", "gate_branches")
"""Settings of the command line that only some networks have."""
_MOST_LISTED = 3  # names of a series, such as vit1, vit2, ...


class NamedBackbone(NamedTuple):
    """The network behind a name; see ``register_backbone`` for the values of its configuration."""

    config_type: type[Any]
    maker: Maker
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]

    @property
    def settings(self) -> tuple[str, ...]:
        """Those of ``SETTINGS`` that the network has."""
        names = {field.name for field in fields(self.config_type)} - set(self.fixed)
        return tuple(name for name in SETTINGS if name in names)

    def config(self, **settings: Any) -> Any:  # noqa: ANN401 - each family has its own
        """Return the configuration with these settings; None stands for the default."""
        given = {name: value for name, value in settings.items() if value is not None}
        return self.config_type(**{**self.defaults, **given, **self.fixed})

    def make(self, statistics: ChannelStatistics, **settings: Any) -> Backbone:  # noqa: ANN401
        """Make the network, untrained, see ``config``."""
        return self.maker(self.config(**settings), statistics)


FAMILIES: dict[str, tuple[type[Any], Maker]] = {}
"""Configuration, a dataclass, and maker of each class of backbones, by its name in storage."""
_NAMES: dict[Recipe, dict[str, NamedBackbone]] = {recipe: {} for recipe in get_args(Recipe)}


def register_family(name: str, config: type[Any], make: Maker) -> None:
    """Register a class of backbones for storage; ``ConfigError`` if another has the name."""
    known = FAMILIES.setdefault(name, (config, make))
    if known != (config, make):
        raise ConfigError(f"family is {name!r}, which {known[1].__name__} has already.")


def register_backbone(
    name: str,
    config: type[Any],
    *,
    recipe: Recipe = "supernet",
    defaults: Mapping[str, Any] | None = None,
    **fixed: Any,  # noqa: ANN401 - each configuration has its own
) -> Callable[[MakerT], MakerT]:
    """Register a class of backbones under a name, for ``--backbone`` and for storage.

    Args:
        name: The name; lower-case letters, digits and underscores.
        config: Its configuration, a frozen dataclass with the fields of ``NetworkConfig``; fields
            called as in ``SETTINGS`` are set from the command line.
        recipe: The recipe that trains it: ``"supernet"``, ``"elastic"`` for a network with stages
            and corrected skips, or ``"adn"`` for adaptive depth.
        defaults: Values that replace the configuration's own defaults.
        fixed: Values of the configuration that the name fixes.

    Raises:
        ConfigError: If the name is taken or malformed.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ConfigError(f"name is {name!r}; allowed are lower-case letters, digits and '_'.")
    if name in _NAMES[recipe]:
        raise ConfigError(f"name is {name!r}, which another backbone of recipe {recipe} has.")

    def register(backbone: MakerT) -> MakerT:
        register_family(getattr(backbone, "family", name), config, backbone)
        _NAMES[recipe][name] = NamedBackbone(config, backbone, fixed, defaults or {})
        return backbone

    return register


def has_recipe(name: str, recipe: Recipe) -> bool:
    """Return True if the recipe trains a network of this name."""
    return name in _NAMES[recipe]


def network_of(name: str, recipe: Recipe = "supernet") -> NamedBackbone:
    """Return the network of a name; ``ConfigError`` if the recipe trains no such one."""
    found = _NAMES[recipe].get(name)
    if found is not None:
        return found
    if recipe == "supernet" and name in _NAMES["adn"]:
        cifar = f"cifar_{name}"
        also = f", or take {cifar}, the network for CIFAR" if cifar in _NAMES[recipe] else ""
        raise ConfigError(
            f"backbone is {name!r}, which the recipe adn trains; add --recipe adn{also}."
        )
    own = ", or module:function" if recipe == "supernet" else ""
    raise ConfigError(
        f"backbone is {name!r}; with the recipe {recipe} allowed are {listed_names(recipe)}{own}."
    )


def listed_names(recipe: Recipe) -> str:
    """Return the names of a recipe's backbones as a sentence lists them.

    A series is shortened, with its step: ``resnet8, resnet14, ..., resnet1202 (6 n + 2)``.
    """
    series: dict[str, list[str]] = {}
    for name in sorted(_NAMES[recipe], key=lambda name: (len(name), name)):
        series.setdefault(name.rstrip("0123456789"), []).append(name)
    for prefix, names in series.items():
        if len(names) > _MOST_LISTED + 1:
            numbers = [int(name.removeprefix(prefix)) for name in names]
            step = numbers[1] - numbers[0]
            rests = {number % step for number in numbers}
            if step > 1 and len(rests) == 1:
                (rest,) = rests
                names[-1] += f" ({step} n + {rest})" if rest else f" ({step} n)"
            names[_MOST_LISTED:-1] = ["..."]
    return ", ".join(name for _, names in sorted(series.items()) for name in names)
