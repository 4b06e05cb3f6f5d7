"""Configurations: frozen pydantic dataclasses with the same checks for Python, YAML and JSON."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from dfs_rl.errors import ConfigError
from dfs_rl.utils.config.errors import chosen_blocks, error_message, field_names
from dfs_rl.utils.config.yaml_core import YamlSettings, dump_yaml, read_yaml
from dfs_rl.utils.io import write_bytes_atomic

T = TypeVar("T")
_MAX_INT = 2**63 - 1  # largest signed 64-bit integer
SEEDS = 2**32
"""Number of valid seeds, from 0."""

Seed = Annotated[int, Field(ge=0, le=SEEDS - 1)]
PositiveInt = Annotated[int, Field(ge=1, le=_MAX_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveUnitInterval = Annotated[float, Field(gt=0, le=1)]

_NO_DEFAULT = dataclasses.MISSING
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def configuration(cls: type[T]) -> type[T]:
    """Convert a class to a frozen pydantic dataclass with one-sentence errors.

    ``__post_init__`` checks fields against each other. A class variable ``CHOICES`` such as
    ``{"algorithm": ("algo", {"ppo": PPOConfig})}`` declares that the setting ``algo`` selects the
    type of the block ``algorithm``.

    Raises:
        ConfigError: From the constructor, with the name of the field, if a value is not allowed.
    """
    made = pydantic_dataclass(cls, frozen=True, kw_only=True, config=_STRICT)
    check = made.__init__

    @functools.wraps(check)
    def __init__(self: T, **values: Any) -> None:  # noqa: ANN401, N807 - of any field
        try:
            check(self, **values)
        except ValidationError as error:
            raise ConfigError(error_message(error, values, made)[1]) from error

    made.__init__ = __init__  # type: ignore[assignment, method-assign]
    return cast("type[T]", made)


def load_config(path: Path, cls: type[T]) -> T:
    """Read a YAML file into a dataclass.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, repeated or missing, or a value
            is not allowed.
    """
    return config_from_dict(read_yaml(path), cls, str(path))


def config_from_dict(data: Mapping[str, object], cls: type[T], source: str) -> T:
    """Build a dataclass from plain values, with the checks of ``load_config``.

    Args:
        data: Values by field name.
        cls: Dataclass.
        source: Origin of the values, the first words of errors.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is not allowed.
    """
    values = fields_from_dict(data, cls, source)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type] # of a dataclass
        has_default = field.default is not _NO_DEFAULT or field.default_factory is not _NO_DEFAULT
        if field.init and not has_default and field.name not in values:
            raise ConfigError(f"{source}: {field.name} is missing and has no default.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def fields_from_dict(data: Mapping[str, object], cls: type, source: str) -> dict[str, Any]:
    """Check plain values against the fields of a dataclass without building it.

    Args:
        data: Values by field name.
        cls: Dataclass.
        source: Origin of the values, the first words of errors.

    Returns:
        Checked values of the fields that ``data`` names, with nested blocks built.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed.
    """
    checker = _checker(cls, tuple(chosen_blocks(cls, data).items()))
    try:
        # Strict JSON accepts lists for tuples and text for paths, and converts nothing else.
        checked = checker.validate_json(json.dumps(data))
    except ValidationError as error:
        place, text = error_message(error, data, cls)
        line = data.line(place) if isinstance(data, YamlSettings) else None
        raise ConfigError(f"{source}{'' if line is None else f', line {line}'}: {text}") from error
    empty = [name for name in data if data[name] == "" and isinstance(checked[name], Path)]
    if empty:  # Path("") is the current folder
        raise ConfigError(f"{source}: {empty[0]} is ''; allowed is a path that is not empty.")
    return checked


def config_to_dict(config: object) -> dict[str, Any]:
    """Convert a dataclass to plain values that ``config_from_dict`` accepts.

    Raises:
        TypeError: If it is not a dataclass, or contains a value that YAML cannot express.
    """
    plain = _plain(config)
    if not isinstance(plain, dict):
        raise TypeError(f"a configuration is a dataclass, not a {type(config).__name__}")
    return plain


def usual_settings(config: object) -> dict[str, Any]:
    """Return the default settings of a configuration, with the blocks that it selects."""
    usual = config_to_dict(type(config)())
    blocks = chosen_blocks(type(config), vars(config))
    return usual | {name: config_to_dict(block()) for name, block in blocks.items()}


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def save_config(config: object, path: Path) -> None:
    """Write a dataclass atomically as YAML that ``load_config`` reads to an equal one."""
    write_bytes_atomic(path, dump_yaml(config_to_dict(config)).encode())


@functools.cache
def _checker(cls: type, chosen: tuple[tuple[str, type], ...]) -> TypeAdapter[dict[str, Any]]:
    """Build the type adapter of a dataclass's fields, all of them optional."""
    hints = get_type_hints(cls, include_extras=True) | dict(chosen)
    settings = TypedDict(  # type: ignore[misc]
        cls.__name__, {name: hints[name] for name in field_names(cls)}, total=False
    )
    settings.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return TypeAdapter(cast("type[dict[str, Any]]", settings))


def _plain(value: object) -> Any:  # noqa: ANN401 - plain values are any of YAML's types
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in field_names(value)}
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
