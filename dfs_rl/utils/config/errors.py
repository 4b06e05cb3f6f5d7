"""Error messages for invalid settings: name, value and allowed values in one sentence."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dfs_rl.utils.config.yaml_core import KeyPath

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


def error_message(
    error: ValidationError, data: Mapping[str, Any], cls: type
) -> tuple[KeyPath, str]:
    """Return the path in ``data`` and the description of the first error that pydantic found.

    Args:
        error: Errors of the validation.
        data: Validated values.
        cls: Dataclass that they were validated against.
    """
    faults = error.errors(include_url=False)
    fault = faults[0]
    path, context = _path_in(data, fault["loc"]), fault.get("ctx", {})
    name, last = _dotted(path), fault["loc"][-1] if fault["loc"] else ""
    if fault["type"] == "json_invalid":
        return path, "a value contains text that is not Unicode, or is nested too deeply."
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        path = path or (last,)
        names = _allowed_names(str(last), field_names(_block(cls, path[:-1], data)))
        return path, f"{_dotted(path) or repr('')} is not a setting; {names}."
    if fault["type"] == "missing" and isinstance(last, str):
        return path, f"{_dotted((*path, last))} is missing and has no default."
    if isinstance(context.get("error"), Exception):
        return path, f"{name}: {context['error']}" if name else str(context["error"])
    value: Any = data
    for step in path:
        value = value[step]
    if fault["type"] == "finite_number":
        return path, f"{name} is {_show(value)}; it must be finite."
    for key, words in _BOUNDS.items():
        if key in context:
            bound = str(context[key]).removesuffix(".0")
            return path, f"{name} is {_show(value)}; it must be {words} {bound}."
    choices = [allowed(other) for other in faults if _path_in(data, other["loc"]) == path]
    return path, f"{name} is {_show(value)}; allowed is {' or '.join(dict.fromkeys(choices))}."


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


def _dataclass_in(hint: object) -> type | None:
    """Return the first dataclass in a type hint, including unions and mappings."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for part in get_args(hint) if (found := _dataclass_in(part))), None)


def allowed(fault: ErrorDetails) -> str:
    """Describe the allowed values of a setting for one of pydantic's errors."""
    if fault["type"] in ("literal_error", "enum"):
        expected = str(fault["ctx"]["expected"]).replace(" or ", ", ")
        return f"one of {expected}" if "," in expected else expected
    if fault["type"] == "too_long":
        return f"a list of {fault['ctx']['max_length']}"
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


def _allowed_names(name: str, names: Sequence[str]) -> str:
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
