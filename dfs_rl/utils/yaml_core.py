"""YAML with the core schema of version 1.2.

``1e-4`` is a number, ``no`` is text and ``010`` is ten, unlike in YAML 1.1, which PyYAML reads by
default. Repeated keys, keys that are not text, and aliases are errors. Reading never executes
code.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfs_rl.errors import ConfigError
from dfs_rl.utils.io import read_limited

_LIMIT = 2**20  # bytes; a configuration has a few thousand
_FAULTS = (yaml.YAMLError, ValueError, RecursionError)  # PyYAML does not wrap all of them
_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS: dict[str, tuple[str, Callable[[str], object]]] = {
    "null": (r"~|null|Null|NULL|", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+",
        lambda text: int(text, 0 if text.startswith(("0x", "0o")) else 10),
    ),
    "float": (_FLOAT, lambda text: float(re.sub(r"\.(?=[iInN])", "", text))),  # .inf and .nan
}
"""Pattern and conversion of the scalars of each type; all others are text."""
KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


class YamlSettings(dict[str, Any]):
    """Settings of a YAML file, with the line number of each value by its path of keys."""

    def __init__(self, settings: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> None:
        super().__init__(settings)
        self.lines = lines

    def where(self, source: str, place: KeyPath) -> str:
        """Return ``source`` with the line of the value at ``place`` or of its nearest parent."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{source}, line {self.lines[place]}" if place in self.lines else source

    def part(self, name: str) -> "YamlSettings":
        """Return the block ``name`` with its line numbers, empty if there is none."""
        inside = {place[1:]: line for place, line in self.lines.items() if place[0] == name}
        return YamlSettings(self.get(name, {}), inside)


def read_yaml(path: Path) -> YamlSettings:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file cannot be read, is not valid YAML, or is not a mapping.
    """
    lines: dict[KeyPath, int] = {}
    content = read_limited(path, limit=_LIMIT, error=ConfigError)
    try:
        data = _load(content, lines)
    except _FAULTS as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    if not isinstance(data, dict | None):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(f"{path} contains {kind}; a configuration is a mapping of settings.")
    return YamlSettings(data or {}, lines)


def parse_value(text: str) -> object:
    """Parse a single value as in a YAML file.

    Raises:
        ConfigError: If it is not valid.
    """
    try:
        return _load(text, {})
    except _FAULTS as error:
        raise ConfigError(f"{text!r} is not a value: {_one_line(error)}.") from error


def dump_yaml(data: Mapping[str, object]) -> str:
    """Return plain values as YAML that ``read_yaml`` reads to equal ones, keys in order."""
    return str(
        yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    )


class _Loader(yaml.SafeLoader):
    """Loader of nodes; ``_plain`` converts them."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's signature
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True  # the loader rejects aliases

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
    for _name, (_pattern, _) in _SCALARS.items():
        _handler.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"({_pattern})\Z"), None)
_Dumper.add_representer(list, _Dumper.represent_items)
_Dumper.add_representer(str, _Dumper.represent_text)


def _load(text: str | bytes, lines: dict[KeyPath, int]) -> Any:  # noqa: ANN401 - any YAML value
    node = yaml.compose(text, Loader=_Loader)
    return None if node is None else _plain(node, (), lines)


def _plain(node: yaml.Node, place: KeyPath, lines: dict[KeyPath, int]) -> Any:  # noqa: ANN401
    """Convert a node at ``place`` to plain values and note the line of every value in it."""
    match node, node.tag.removeprefix(_TAG):
        case yaml.SequenceNode(), "seq":
            items = []
            for index, item in enumerate(node.value):
                lines[(*place, index)] = item.start_mark.line + 1
                items.append(_plain(item, (*place, index), lines))
            return items
        case yaml.MappingNode(), "map":
            settings: dict[str, Any] = {}
            for key, value in node.value:
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"of kind {key.id}"
                if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                    raise _fault(key, f"key {shown} is not text")
                if key.value in settings:
                    raise _fault(key, f"key {shown} is given twice")
                lines[(*place, key.value)] = key.start_mark.line + 1
                settings[key.value] = _plain(value, (*place, key.value), lines)
            return settings
        case yaml.ScalarNode(value=text), "str":
            return text
        case yaml.ScalarNode(value=text), name if name in _SCALARS:
            pattern, convert = _SCALARS[name]
            if re.fullmatch(pattern, text):
                return convert(text)
    raise _fault(node, f"the tag {node.tag} is not allowed here")


def _fault(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: Exception) -> str:
    """Return PyYAML's problem and line number, without its excerpt of the file."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return error.problem + (f" (line {mark.line + 1})" if mark else "")
    return " ".join(str(error).split()).rstrip(".")
