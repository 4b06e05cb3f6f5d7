"""Error sentences for flags that a command cannot parse, with the flag that may be meant."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from dfs_rl.utils.config import chosen_blocks, closest

ADVANCED = "advanced"
"""Block of the flags that have no prefix, but come last on the help page."""
_BOX_LINE = re.compile(r"[╭╰]|[\s│]*[─-]{3,}[\s│]*$")
_WORDS = {int: "whole number", float: "number"}
_SYNONYMS = {"lr": "learning-rate"}


def error_summary(
    complaint: str, flags: type, config_type: type, commands: Mapping[str, str]
) -> str:
    """Extract the error from the box that tyro prints; for an unknown flag, suggest another one.

    ``flags`` is the dataclass that tyro parsed; for ``commands`` see ``run_command``.
    """
    paragraphs: list[list[str]] = [[]]
    for line in complaint.splitlines():
        if _BOX_LINE.match(line):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line.strip(" │"))
    texts = [" ".join(words) for lines in paragraphs if (words := " ".join(lines).split())]
    if "╭" not in complaint and len(texts) > 1:
        texts = texts[1:]  # without box characters, the first text is the title
    what = texts[0] if texts else "the flags cannot be read"
    what = what.removeprefix("Error parsing ").partition(". Got errors: ")[0].rstrip(".")
    unknown = re.match(r"Unrecognized options: --([^\s,=]+)", what)
    if unknown is None:
        return _sentence(what, flags)
    hint = _hint(unknown[1], flags, config_type, commands)
    return f"--{unknown[1]} is no flag of this command{hint}"


def _sentence(complaint: str, flags: type) -> str:
    """Return tyro's complaint as a sentence with the flag, its value and the allowed ones."""
    if found := re.match(r"Missing from .*?: (--)?\S+ (?:\[.*\]\] )?(.*?)(?:\. .*)?\(", complaint):
        name = next(f.name for f in dataclasses.fields(flags) if f.default is tyro.MISSING)
        text = found[2].strip(" .")
        text = text[:1].lower() + text[1:] if text[1:2].islower() else text
        return f"no {found[1] or ''}{name} is given; needed: {text}"
    if found := re.match(r"Missing value for argument '(.+?)'", complaint):
        return f"{found[1]} needs a value after it"
    if found := re.match(r"invalid choice (.+) for argument '(.+?)'.*?\((.*?),?\)", complaint):
        choices = sorted(found[3].split(", "))  # in the complaint the order is random
        near = closest(found[1].strip("'"), choices)
        return f"{found[2]} is {found[1]}; allowed are {', '.join(choices)}{near}"
    if found := re.match(r"Unrecognized options: (\S+)", complaint):
        return f"{found[1]!r} is no argument of this command"
    if found := re.match(r"--(\S+): .*(?:\[(.*)\]|to (?:float|int): (.*))$", complaint):
        name, value = found[1], found[2] or found[3] or "empty"
        return f"--{name} is {value}; allowed: {_in_words(_flag_types(flags)[name])}"
    return complaint


def _in_words(hint: Any) -> str:  # noqa: ANN401 - any type hint
    """Return a short description of the values of a type."""
    parts = [part for part in get_args(hint) if part not in (type(None), ...)]
    if get_origin(hint) is tuple:
        number = "one or more" if ... in get_args(hint) else str(len(parts))
        return f"{number} {_in_words(parts[0]).removeprefix('a ')}s"
    if parts:  # of Annotated the type comes first, of an optional type the other one is None
        return _in_words(parts[0])
    return f"a {_WORDS.get(hint, 'value')}"


def _hint(flag: str, flags: type, config_type: type, commands: Mapping[str, str]) -> str:
    """Return the end of the sentence about an unknown flag; empty if none is close."""
    block, _, name = flag.replace("_", "-").rpartition(".")
    name = _SYNONYMS.get(name, name)
    full = f"{block}.{name}" if block else name
    own: dict[str, list[str]] = {}  # flags by the part after their block
    for each in _flag_types(flags):
        own.setdefault(each.rpartition(".")[2], []).append(f"--{each}")
    if name in own:
        return f"; the closest one is {_listed(own[name])}"
    owners = [
        f"--{setting} {choice}"
        for part, (setting, types) in getattr(config_type, "CHOICES", {}).items()
        for choice in types
        if part == block and name in _flag_types(types[choice])
    ]
    owners = owners or [
        command for command, config in commands.items() if full in _flag_types(resolve_name(config))
    ]
    if owners:
        return f"; it belongs to {_listed(owners)}"
    close = difflib.get_close_matches(name, own, n=1)
    return f"; the closest one is {_listed(own[close[0]])}" if close else ""


def _flag_types(cls: type) -> dict[str, Any]:
    """Return the types of the flags of a dataclass by their names, without dashes before them."""
    types: dict[str, Any] = {}
    hints = get_type_hints(cls, include_extras=True) | chosen_blocks(cls, {})
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], field.name.replace("_", "-")
        kind = next(iter(get_args(hint)), hint)  # Annotated has the type first
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            prefix = "" if field.name == ADVANCED else f"{name}."
            types |= {f"{prefix}{inner}": each for inner, each in _flag_types(kind).items()}
        elif field.init and tyro.conf.Positional not in get_args(hint):
            types[name] = hint
    return types


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
