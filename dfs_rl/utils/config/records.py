"""Plain values to frozen dataclasses and back."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config.errors import describe, place_of, sentence
from dfs_rl.utils.config.yaml_core import YamlSettings, dump_yaml, read_yaml
from dfs_rl.utils.io import write_bytes_atomic

T = TypeVar("T")


def load_config(path: Path, cls: type[T]) -> T:
    """Read a YAML file into a dataclass.

    Args:
        path: The file.
        cls: A dataclass; its fields may be nested dataclasses, ``Literal``, tuples, lists,
            mappings, ``Path``, and unions of these.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, repeated or missing, or a value
            is not allowed.
    """
    return config_from_dict(read_yaml(path), cls, str(path))


def config_from_dict(data: Mapping[str, object], cls: type[T], source: str) -> T:
    """Build a dataclass from plain values, as strictly as ``load_config``.

    Args:
        data: Values by field name.
        cls: The dataclass.
        source: Where the values came from; errors begin with it.

    Raises:
        ConfigError: As ``load_config``.
    """
    values = fields_from_dict(data, cls, source)
    missing = [name for name in required_fields(cls) if name not in values]
    if missing:
        raise ConfigError(f"{source}: {missing[0]} is missing and has no default.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def fields_from_dict(data: Mapping[str, object], cls: type, source: str) -> dict[str, Any]:
    """Check plain values against the fields of a dataclass without building it.

    Returns:
        The checked values, nested blocks built, for the fields that ``data`` names.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed.
    """
    whole = {name: _over_default(cls, name, value) for name, value in data.items()}
    try:
        checked = _checked(whole, cls)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        line = data.line(place_of(fault, whole)) if isinstance(data, YamlSettings) else None
        where = source if line is None else f"{source}, line {line}"
        raise ConfigError(f"{where}: {sentence(fault, whole, cls)}") from error
    empty = [name for name in whole if whole[name] == "" and isinstance(checked[name], Path)]
    if empty:  # which a path takes for the current folder
        raise ConfigError(f"{source}: {empty[0]} is ''; allowed is a path that is not empty.")
    return checked


def check_values(config: object) -> None:
    """Check the values of a dataclass as strictly as those of a file, wherever they come from.

    A configuration calls it in its ``__post_init__``.

    Raises:
        ConfigError: If a value is not allowed.
    """
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        try:
            values[field.name] = _plain(value)
        except TypeError as error:  # of a class that no file has a word for, such as one of NumPy
            hint = get_type_hints(type(config), include_extras=True)[field.name]
            raise ConfigError(f"{field.name} is {value!r}; allowed is {describe(hint)}.") from error
    try:
        _checked(values, type(config))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ConfigError(sentence(fault, values, type(config))) from error


def required_fields(cls: type) -> tuple[str, ...]:
    """Return the names of the fields that have no default."""
    return tuple(
        field.name
        for field in dataclasses.fields(cls)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )


def config_to_dict(config: object) -> dict[str, Any]:
    """Turn a dataclass into plain values that ``config_from_dict`` takes back.

    Raises:
        TypeError: If it is not a dataclass, or holds a value that YAML has no word for.
    """
    plain = _plain(config)
    if not isinstance(plain, dict):
        raise TypeError(f"a configuration is a dataclass, not a {type(config).__name__}")
    return plain


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings by their dotted names."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def save_config(config: object, path: Path) -> None:
    """Write a dataclass as YAML that ``load_config`` reads back to an equal one, atomically."""
    write_bytes_atomic(path, dump_yaml(config_to_dict(config)).encode())


def _checked(values: Mapping[str, object], cls: type) -> dict[str, Any]:
    # Strict validation of JSON takes a list for a tuple and text for a path, which YAML cannot
    # tell apart either, and nothing else in place of something else.
    return _checker(cls).validate_json(json.dumps(values))


@cache
def _checker(cls: type) -> TypeAdapter[dict[str, Any]]:
    """Build the checker of a dataclass's fields.

    It sees the fields as a typed dictionary that allows omissions, because a file may leave some
    to flags. Nested dataclasses inherit its strictness, for which they need no marks of their own.
    """
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    settings = TypedDict(cls.__name__, fields, total=False)  # type: ignore[misc]
    settings.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", strict=True, allow_inf_nan=False
    )
    return TypeAdapter(cast("type[dict[str, Any]]", settings))


def _over_default(cls: type, name: str, value: object) -> object:
    """Complete a block of settings by the defaults that ``cls`` gives it, not its own class."""
    field = next((field for field in dataclasses.fields(cls) if field.name == name), None)
    if field is None or not isinstance(value, Mapping):
        return value
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    if not dataclasses.is_dataclass(default):
        return value
    if get_type_hints(cls)[name] is not type(default):  # a union: the block may be of another type
        return value
    return _overlay(default, value)


def _overlay(default: object, values: Mapping[str, object]) -> dict[str, object]:
    merged = config_to_dict(default) | dict(values)
    for name, value in values.items():
        block = getattr(default, name, None)
        if dataclasses.is_dataclass(block) and isinstance(value, Mapping):
            merged[name] = _overlay(block, value)
    return merged


def _plain(value: object) -> Any:  # noqa: ANN401 - plain values are any of YAML's types
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} cannot be written to a configuration: {value!r}")
