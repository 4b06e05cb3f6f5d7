"""Configurations: frozen pydantic dataclasses with the same checks for Python, YAML and JSON.

Every error is one sentence with the name, the value and the allowed values of a setting.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict, dataclass_transform

from dfs_rl.errors import ConfigError
from dfs_rl.utils.io import to_json_value
from dfs_rl.utils.yaml_core import KeyPath, YamlSettings, dump_yaml, read_yaml

T = TypeVar("T")
_MAX_INT = 2**63 - 1  # largest signed 64-bit integer
_MAX_SIZE = 10**10  # more decisions than a GPU makes in a week, and more than memory holds
MAX_COUNT = 100_000
"""Largest ``Count``."""
SEEDS = 2**32
"""Number of valid seeds, from 0."""

Seed = Annotated[int, Field(ge=0, le=SEEDS - 1)]
PositiveInt = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
"""Number of repetitions of a whole, such as epochs, trials or seeds."""
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Percentage = Annotated[float, Field(ge=0, le=100)]
PositiveUnitInterval = Annotated[float, Field(gt=0, le=1)]

_NO_DEFAULT = dataclasses.MISSING
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_LONGEST_VALUE = 60
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "none": "null",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "dataclass": "a block of settings",
    "missing": "a list of another length",
}
"""Description of the allowed values by the first word of a pydantic error type."""
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


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

    ``source``, the origin of the values, begins every error.
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
    """Check plain values like ``config_from_dict``, and return them with nested blocks built."""
    checker = _checker(cls, tuple(chosen_blocks(cls, data).items()))
    try:
        # Strict JSON accepts lists for tuples and text for paths, and converts nothing else.
        checked = checker.validate_json(json.dumps(data))
    except ValidationError as error:
        place, text = error_message(error, data, cls)
        where = data.where(source, place) if isinstance(data, YamlSettings) else source
        raise ConfigError(f"{where}: {text}") from error
    empty = [name for name in data if data[name] == "" and isinstance(checked[name], Path)]
    if empty:  # Path("") is the current folder
        raise ConfigError(f"{source}: {empty[0]} is ''; allowed is a path that is not empty.")
    return checked


def config_to_dict(config: object) -> dict[str, Any]:
    """Convert a dataclass to plain values that ``config_from_dict`` accepts.

    Raises:
        TypeError: If it is not a dataclass, or contains a value without plain form.
    """
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"a configuration is a dataclass, not a {type(config).__name__}")
    settings: dict[str, Any] = to_json_value(config, finite=False)
    return settings


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


def config_bytes(config: object) -> bytes:
    """Return a dataclass as YAML that ``load_config`` reads to an equal one."""
    return dump_yaml(config_to_dict(config)).encode()


def field_names(cls: object) -> tuple[str, ...]:
    """Return the names of the constructor arguments of a dataclass."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.init) if cls else ()  # type: ignore[arg-type]


def chosen_blocks(cls: type, values: Mapping[str, object]) -> dict[str, type]:
    """Return the type of each block that another setting selects; see ``configuration``."""
    chosen = {}
    for block, (setting, types) in getattr(cls, "CHOICES", {}).items():
        value = values.get(setting, getattr(cls, setting))
        if isinstance(value, str) and value in types:
            chosen[block] = types[value]
    return chosen


@functools.cache
def _checker(cls: type, chosen: tuple[tuple[str, type], ...]) -> TypeAdapter[dict[str, Any]]:
    """Build the type adapter of a dataclass's fields, all of them optional."""
    hints = get_type_hints(cls, include_extras=True) | dict(chosen)
    settings = TypedDict(  # type: ignore[misc]
        cls.__name__, {name: hints[name] for name in field_names(cls)}, total=False
    )
    settings.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return TypeAdapter(cast("type[dict[str, Any]]", settings))


def error_message(
    error: ValidationError, data: Mapping[str, Any], cls: type
) -> tuple[KeyPath, str]:
    """Return the place in ``data`` and the description of the first error against ``cls``."""
    faults = error.errors(include_url=False)
    fault = faults[0]
    path, context = _path_in(data, fault["loc"]), fault.get("ctx", {})
    name, last = _dotted(path), fault["loc"][-1] if fault["loc"] else ""
    if fault["type"] == "json_invalid":
        return path, "a value contains text that is not Unicode, or is nested too deeply."
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        path = path or (last,)
        names = allowed_names(str(last), field_names(_block(cls, path[:-1], data)))
        return path, f"{_dotted(path) or repr('')} is not a setting; {names}."
    if fault["type"] == "missing" and isinstance(last, str):
        return path, f"{_dotted((*path, last))} is missing and has no default."
    if isinstance(context.get("error"), Exception):
        return path, f"{name}: {context['error']}" if name else str(context["error"])
    value: Any = data
    for step in path:
        value = value[step]
    is_value = f"{name} is {_show(value)};"
    if fault["type"] == "finite_number":
        return path, f"{is_value} it must be finite."
    for key, words in _BOUNDS.items():
        if key in context:
            return path, f"{is_value} it must be {words} {str(context[key]).removesuffix('.0')}."
    choices = [_allowed(other) for other in faults if _path_in(data, other["loc"]) == path]
    return path, f"{is_value} allowed is {' or '.join(dict.fromkeys(choices))}."


def _allowed(fault: ErrorDetails) -> str:
    """Describe the allowed values of a setting for one of pydantic's errors."""
    if fault["type"] == "literal_error":
        expected = str(fault["ctx"]["expected"]).replace(" or ", ", ")
        near = closest(str(fault["input"]), expected.split(", "))
        return f"one of {expected}{near}" if "," in expected else expected
    if fault["type"] == "too_long":
        return f"a list of {fault['ctx']['max_length']}"
    if fault["type"] == "too_short":
        return f"a list of at least {fault['ctx']['min_length']}"
    return _WORDS.get(fault["type"].split("_")[0], fault["msg"])


def _path_in(data: Any, location: Sequence[str | int]) -> KeyPath:  # noqa: ANN401 - any YAML value
    """Keep the steps of a location that exist in the data; others name members of unions."""
    path: list[str | int] = []
    for step in location:
        items = isinstance(data, list | tuple) and isinstance(step, int) and step < len(data)
        if items or (isinstance(data, Mapping) and step in data):
            data = data[step]
            path.append(step)
    return tuple(path)


def _block(cls: type, path: Sequence[str | int], data: Mapping[str, Any]) -> type:
    """Return the dataclass of the block at ``path``."""
    for step in path:
        if step in field_names(cls):
            types = get_type_hints(cls) | chosen_blocks(cls, data)
            cls = _dataclass_in(types[str(step)]) or cls
    return cls


def _dataclass_in(hint: object) -> type | None:
    """Return the first dataclass in a type hint, including unions and mappings."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for part in get_args(hint) if (found := _dataclass_in(part))), None)


def closest(value: str, choices: Sequence[str]) -> str:
    """Return the end of a list of quoted choices that names the closest; empty if none is close."""
    close = difflib.get_close_matches(value, [choice.strip("'") for choice in choices], n=1)
    return f"; the closest one is {close[0]!r}" if close else ""


def allowed_names(name: str, names: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown name: the closest one, or all of them."""
    close = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    return f"the closest one is {close[0]}" if close else f"allowed are {', '.join(names)}"


def _dotted(path: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _show(value: object) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
