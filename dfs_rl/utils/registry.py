"""Registries of named extensions, and plugins of other distributions that add to them."""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any, TypeVar, cast

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dfs_rl.errors import ConfigError

T = TypeVar("T")
V = TypeVar("V")

PLUGIN_GROUP = "dfs_rl.plugins"
"""Group of the entry points that name a plugin's modules."""
_loaded: list[str] = []
"""Entry points that are imported, or whose import has begun."""


def load_plugins() -> None:
    """Import the modules of all installed plugins, once per process.

    Raises:
        ConfigError: If a plugin cannot be imported.
    """
    if PLUGIN_GROUP not in _loaded:
        _loaded.append(PLUGIN_GROUP)  # before the imports, which may ask for names themselves
        for entry in entry_points(group=PLUGIN_GROUP):
            _import(entry)


def _import(entry: EntryPoint) -> None:
    if entry.value in _loaded:
        return
    try:
        entry.load()
    except Exception as error:
        _loaded.remove(PLUGIN_GROUP)
        owner = entry.dist.name if entry.dist else "unknown"
        raise ConfigError(
            f"plugin {entry.name!r} of the distribution {owner!r} cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall {owner!r}."
        ) from error
    _loaded.append(entry.value)


class Registry(Mapping[str, V]):
    """Values by name, those of plugins included.

    ``Annotated[str, registry]`` is a type of settings: its values are the registered names, and
    help pages list them. A value may be given as ``"module:attribute"``, imported on first use.

    Args:
        what: Noun of the values for error messages, for example ``"cost model"``.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._values: dict[str, V | str] = {}

    def add(self, name: str, value: V | str) -> None:
        """Add a value.

        Raises:
            ConfigError: If another value has the name.
        """
        if name in self._values:
            raise ConfigError(f"{self.what} {name!r} is registered already; choose another name.")
        self._values[name] = value

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates."""

        def decorate(value: T) -> T:
            self.add(name, value)  # type: ignore[arg-type] # T is V, kept as precise as given
            return value

        return decorate

    def __getitem__(self, name: str) -> V:
        load_plugins()
        value = self._values[name]
        if isinstance(value, str):
            value = self._values[name] = cast("V", resolve_name(value))
        return value

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._values))

    def __len__(self) -> int:
        load_plugins()
        return len(self._values)

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration."""
        return tuple(self)

    def find(self, name: str, *, setting: str = "") -> V:
        """Return the value of a name that a user gave.

        Args:
            name: Name of the value.
            setting: Setting that has the name; by default the kind of the values.

        Raises:
            ConfigError: If no value has the name.
        """
        if name not in self:
            raise ConfigError(
                f"{setting or self.what} is {name!r}; allowed is one of "
                f"{', '.join(map(repr, self))}."
            )
        return self[name]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:  # noqa: ANN401
        """Return the schema of a setting whose values are the names."""

        def check(name: str) -> str:
            if name not in self:
                expected = " or ".join(map(repr, self))
                raise PydanticCustomError("literal_error", "{expected}", {"expected": expected})
            return name

        return core_schema.no_info_after_validator_function(check, handler(source))
