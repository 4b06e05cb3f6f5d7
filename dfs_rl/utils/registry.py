"""Registries of named objects, and the plugins that add to them."""

import re
import warnings
from collections import UserDict
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any, TypeVar, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from dfs_rl.errors import ConfigError

T = TypeVar("T")
EntryT = TypeVar("EntryT")
GROUP = "dfs_rl.plugins"
"""Group of entry points; each names a module that registers objects when it is imported."""
_NAME = re.compile("[a-z][a-z0-9_]*")


class Registry(UserDict[str, T]):
    """Objects by name, in the order of registration.

    An entry may be a string ``"module:attribute"``, which is imported at its first use: names are
    then known without importing torch.
    ``kind`` is that of the entries in errors, for example ``"reward term"``.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str] | None = None) -> None:
        super().__init__(entries)  # type: ignore[arg-type] # __getitem__ replaces the strings
        self.kind = kind

    def add(self, name: str, entry: T) -> None:
        """Register an object.

        Raises:
            ConfigError: If the name is malformed, or another object has it.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{self.kind} has name {name!r}; allowed are lower-case letters, digits and '_', "
                "with a letter first."
            )
        if name in self:
            raise ConfigError(f"{self.kind} {name!r} is already registered; choose another name.")
        self[name] = entry

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Return a decorator that adds an object, see ``add``, and leaves it as it is."""

        def register(entry: EntryT) -> EntryT:
            self.add(name, cast("T", entry))
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        entry = self.data[name]
        if isinstance(entry, str):
            self.data[name] = entry = resolve_name(entry)
        return entry


class NameIn:
    """Annotation of a setting that holds a name of a registry, or one that a function returns.

    ``Annotated[str, NameIn(REGISTRY)]`` is checked when a configuration is made, so it knows
    plugins; a ``Literal`` would know only the names at the time of its import.
    """

    def __init__(self, names: Collection[str] | Callable[[], Collection[str]]) -> None:
        self._names = names

    @property
    def names(self) -> tuple[str, ...]:
        """The allowed names, at this time."""
        return tuple(self._names() if callable(self._names) else self._names)

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of ``source`` with a check of the name."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name not in self.names:
            expected = ", ".join(map(repr, self.names))
            raise PydanticKnownError("literal_error", {"expected": expected})
        return name


def load_plugins() -> None:
    """Import the modules that installed distributions name as entry points of ``GROUP``.

    A plugin that cannot be imported gives a warning, since it must not break other programs.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001, PERF203 - a plugin may raise anything
            owner = point.dist.name if point.dist is not None else "an unknown distribution"
            warnings.warn(
                f"the DFS-RL plugin {point.value} of {owner} cannot be imported "
                f"({type(error).__name__}: {error}); its names are not available.",
                stacklevel=2,
            )
