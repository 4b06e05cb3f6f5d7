"""YAML with the core schema of version 1.2.

``1e-4`` is a number, ``no`` is text and ``010`` is ten, unlike in YAML 1.1, which PyYAML reads by
default. Repeated keys, keys that are not text, and aliases are errors. Reading never executes
code.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dfs_rl.errors import ConfigError
from dfs_rl.utils.io import parse_finite_float, parse_int64, read_limited

_LINE_WIDTH = 100
_LIMIT = 2**20  # bytes; a configuration has a few thousand
_FAULTS = (yaml.YAMLError, ValueError, RecursionError, KeyError)  # PyYAML does not wrap all of them
NumberT = TypeVar("NumberT", int, float)
KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


class YamlSettings(dict[str, Any]):
    """Settings of a YAML file with their line numbers.

    Attributes:
        lines: Line number of each value, from 1, by its path of keys.
    """

    def __init__(self, settings: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> None:
        super().__init__(settings)
        self.lines = lines

    def line(self, place: KeyPath) -> int | None:
        """Return the line of the value at ``place`` or of its nearest parent, else ``None``."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)

    def part(self, name: str) -> "YamlSettings":
        """Return the block ``name`` with its line numbers, empty if there is none."""
        inside = {place[1:]: line for place, line in self.lines.items() if place[0] == name}
        return YamlSettings(self.get(name, {}), inside)


def read_yaml(path: Path) -> YamlSettings:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file cannot be read, is not valid YAML, or is not a mapping.
    """
    try:
        text = read_limited(path, limit=_LIMIT)
        data = yaml.load(text, Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except _FAULTS as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    if data is None:
        return YamlSettings({}, {})
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(f"{path} holds {kind}; a configuration is a mapping of settings.")
    return YamlSettings(data, dict(_lines(yaml.compose(text, Loader=_Loader), ())))


def parse_value(text: str) -> object:
    """Parse a single value as in a YAML file.

    Raises:
        ConfigError: If it is not valid.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _FAULTS as error:
        raise ConfigError(f"{text!r} is not a value: {_one_line(error)}.") from error


def dump_yaml(data: Mapping[str, object]) -> str:
    """Return plain values as YAML that ``read_yaml`` reads to equal ones, keys in order."""
    text: str = yaml.dump(
        dict(data),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=_LINE_WIDTH,
        default_flow_style=False,
    )
    return text


class _Loader(yaml.SafeLoader):
    # The signatures of both methods are those of PyYAML.
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(problem="aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            scalar = isinstance(key, yaml.ScalarNode)
            shown = repr(key.value) if scalar else f"of kind {key.id}"
            problem = ""
            if not scalar or key.tag != "tag:yaml.org,2002:str":
                problem = f"key {shown} is not text"
            elif key.value in seen:
                problem = f"key {shown} is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write repeated objects in full, because the loader rejects aliases."""
        return True


_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_CORE_TYPES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return _number(parse_int64, str(loader.construct_scalar(node)), node)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    if text.endswith(("inf", "nan")):
        return float(text.replace(".", ""))
    return _number(parse_finite_float, text, node)


def _number(read: Callable[[str], NumberT], text: str, node: yaml.ScalarNode) -> NumberT:
    try:
        return read(text)
    except ValueError as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


def _represent_list(dumper: yaml.SafeDumper, items: Sequence[object]) -> yaml.Node:
    """Keep lists of plain values on one line."""
    flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Escape line breaks, which PyYAML folds in the keys of mappings."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _set_core_types() -> None:
    for handler in (_Loader, _Dumper):
        handler.yaml_implicit_resolvers = {}
        for name, pattern, first in _CORE_TYPES:
            handler.add_implicit_resolver(
                f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), list(first)
            )
    # Without constructors for dates, sets and binary data, their tags are errors.
    core = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "str", "seq", "map")} | {None}
    _Loader.yaml_constructors = {
        tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag in core
    }
    _Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
    _Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
    _Dumper.add_representer(list, _represent_list)
    _Dumper.add_representer(str, _represent_text)


_set_core_types()


def _lines(node: yaml.Node | None, place: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path and line of every value; in a mapping, the line of its key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _lines(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*place, index), item.start_mark.line + 1
            yield from _lines(item, (*place, index))


def _one_line(error: Exception) -> str:
    """Return PyYAML's problem and line number, without its excerpt of the file."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is not what its tag says"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return error.problem + (f" (line {mark.line + 1})" if mark else "")
    return " ".join(str(error).split()).rstrip(".")
