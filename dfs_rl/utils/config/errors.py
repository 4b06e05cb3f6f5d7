"""One sentence for a setting that is not allowed: where it stands, what it is, what it may be."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic_core import ErrorDetails

from dfs_rl.utils.config.yaml_core import Place

_LONGEST_VALUE = 60
_PLAIN_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def sentence(fault: ErrorDetails, data: Mapping[str, object], cls: type) -> str:
    """Describe a fault that pydantic found.

    Args:
        fault: One entry of a ``ValidationError``.
        data: The values that were checked.
        cls: The dataclass they were checked against.
    """
    path = place_of(fault, data)
    if fault["type"] == "json_invalid":
        return "a value holds text that is not Unicode, or is nested too deeply."
    if fault["type"] in _UNKNOWN:
        names = _field_names(_hint_at(cls, path[:-1]))
        return (
            f"{_dotted(path) or repr('')} is not a setting; {_allowed_names(str(path[-1]), names)}."
        )
    if fault["type"] == "missing" and isinstance(fault["loc"][-1], str):
        return f"{_dotted((*path, fault['loc'][-1]))} is missing and has no default."
    context = fault.get("ctx", {})
    own = context.get("error")
    if isinstance(own, Exception):
        return f"{_dotted(path)}: {own}"
    value = _show(_value_at(data, path))
    if fault["type"] == "finite_number":
        return f"{_dotted(path)} is {value}; it must be finite."
    for key, words in _BOUNDS.items():
        if key in context:
            return f"{_dotted(path)} is {value}; it must be {words} {str(context[key]).removesuffix('.0')}."
    return f"{_dotted(path)} is {value}; allowed is {describe(_hint_at(cls, path))}."


def place_of(fault: ErrorDetails, data: Mapping[str, object]) -> Place:
    """Return where in ``data`` a fault that pydantic found lies."""
    return _path_in(data, fault["loc"])


def describe(hint: object) -> str:
    """Say in words which values a type hint allows."""
    hint = _bare(hint)
    arguments = get_args(hint)
    origin = get_origin(hint)
    if hint is Any:
        return "any value"
    if isinstance(hint, type) and hint in _PLAIN_NAMES:
        return _PLAIN_NAMES[hint]
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(_show(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in (tuple, list) and arguments:
        if origin is list or arguments[-1] is Ellipsis:
            return f"a list of items that are each {describe(arguments[0])}"
        return f"a list of {len(arguments)}: {', '.join(describe(a) for a in arguments)}"
    if origin is dict and arguments:
        return f"a mapping whose values are each {describe(arguments[1])}"
    if names := _field_names(hint):
        return f"a block of the settings {', '.join(names)}"
    return str(hint)


def _path_in(data: object, location: Sequence[str | int]) -> Place:
    """Keep the steps of a location that lead through the data; others name members of unions."""
    path: list[str | int] = []
    for step in location:
        in_mapping = isinstance(data, Mapping) and step in data
        if in_mapping or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            data = _value_at(data, (step,))
            path.append(step)
    return tuple(path)


def _value_at(data: Any, path: Sequence[str | int]) -> object:  # noqa: ANN401 - any YAML value
    for step in path:
        data = data[step]
    return data


def _hint_at(hint: object, path: Sequence[str | int]) -> object:
    for step in path:
        hint = _hint_of_item(hint, step)
    return hint


def _hint_of_item(hint: object, step: str | int) -> object:
    hint = _bare(hint)
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        found = (_hint_of_item(argument, step) for argument in arguments)
        return next((item for item in found if item is not None), None)
    if step in _field_names(hint) and isinstance(hint, type):
        return get_type_hints(hint, include_extras=True)[str(step)]
    if get_origin(hint) is tuple and isinstance(step, int):
        return (
            arguments[0] if arguments[-1] is Ellipsis else arguments[min(step, len(arguments) - 1)]
        )
    if get_origin(hint) is list:
        return arguments[0]
    if get_origin(hint) is dict:
        return arguments[1]
    return None


def _field_names(hint: object) -> tuple[str, ...]:
    """Return the settings of a dataclass, or of those in a union; none for other types."""
    hint = _bare(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(name for argument in get_args(hint) for name in _field_names(argument))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return tuple(field.name for field in dataclasses.fields(hint) if field.init)
    return ()


def _bare(hint: object) -> object:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _allowed_names(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    return f"the closest one is {close[0]}" if close else f"allowed are {', '.join(names)}"


def _dotted(path: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _show(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
