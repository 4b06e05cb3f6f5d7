"""YAML with the core schema of version 1.2.

``1e-4`` is a number, ``no`` is text and ``010`` is ten, unlike in YAML 1.1, which PyYAML reads by
default. Repeated keys, keys that are not text, and aliases are errors. Reading never executes
code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfs_rl.errors import ConfigError
from dfs_rl.utils.io import read_limited

_LIMIT = 2**20  # bytes; a configuration has a few thousand
_FAULTS = (yaml.YAMLError, ValueError, RecursionError, KeyError)  # PyYAML does not wrap all of them
_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_CORE_TYPES = {  # pattern and first characters of each type's scalars
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}
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
        raise ConfigError(f"{path} contains {kind}; a configuration is a mapping of settings.")
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
    return str(
        yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    )


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
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"of kind {key.id}"
            problem = None
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                problem = f"key {shown} is not text"
            elif key.value in seen:
                problem = f"key {shown} is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0 if text.startswith(("0x", "0o")) else 10)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write repeated objects in full, because the loader rejects aliases."""
        return True

    def represent_items(self, items: Sequence[object]) -> yaml.Node:
        """Write lists of plain values on one line."""
        flat = not any(isinstance(item, dict | list) for item in items)
        return self.represent_sequence(f"{_TAG}seq", items, flow_style=flat)

    def represent_text(self, text: str) -> yaml.Node:
        """Escape line breaks, which PyYAML folds in the keys of mappings."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar(f"{_TAG}str", text, style=style)


for _handler in (_Loader, _Dumper):
    _handler.yaml_implicit_resolvers = {}
    for _name, (_pattern, _first) in _CORE_TYPES.items():
        _handler.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
# Without constructors for dates, sets and binary data, their tags are errors.
_Loader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in {"null", "bool", "str", "seq", "map", "float"}
}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_core_int)
_Dumper.add_representer(list, _Dumper.represent_items)
_Dumper.add_representer(str, _Dumper.represent_text)


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
