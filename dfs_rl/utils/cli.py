"""Command-line interface shared by all commands: flags, YAML files, resuming, exit codes.

The "Attributes" of a configuration's docstring become the help page. A class variable ``FIRST``
names the settings on its first screen; the others follow the blocks.
"""

import argparse
import dataclasses
import io
import math
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from docstring_parser.common import DocstringStyle

from dfs_rl.errors import ConfigError, DfsRlError
from dfs_rl.utils.config import chosen_blocks, fields_from_dict
from dfs_rl.utils.dataset_names import dataset_folder
from dfs_rl.utils.flag_hints import ADVANCED, error_summary
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.registry import NameIn
from dfs_rl.utils.run_folder import RunFolder, check_new
from dfs_rl.utils.signals import sigterm_as_interrupt
from dfs_rl.utils.trusted_import import is_constructor, is_trusted, trust_constructor, trusting
from dfs_rl.utils.yaml_core import YamlSettings, read_yaml

ConfigT = TypeVar("ConfigT")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_TRUST = "--trust-code"
_TRUST_HELP = (
    "Import the module:function that made the network in a folder or file that is read; it may be "
    "anyone's code."
)
_REGISTRY = tyro.constructors.ConstructorRegistry()
"""Parsers of flags that replace those of tyro."""
_SHARED_FLAGS = {
    "config": Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="YAML file with any of these settings; flags win.",
            help_behavior_hint="",
        ),
    ],
    "resume": Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="DIR",
            help="Continue the run in this folder with its own settings; --dataset may give the "
            "new place of its data.",
            help_behavior_hint="",
        ),
    ],
}
_Field = tuple[str, Any, Any]
_FLAGS_WITH_RESUME = {"dataset", "address"}
"""Flags allowed with --resume: the current location of the data or of a cluster."""

_CREATED = {"run_dir", "out"}
"""Settings with a path that a command creates; the paths of others must exist."""


@_REGISTRY.primitive_rule
def _parse_int(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Parse whole numbers, also in the form ``1e5``."""

    def parse(words: list[str]) -> int:
        try:
            return int(words[0])
        except ValueError:
            number = float(words[0]) if "e" in words[0].lower() else math.nan
            if not number.is_integer():
                raise ValueError(f"not converted to int: {words[0]!r}") from None
            return int(number)

    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


@dataclass(frozen=True, kw_only=True)
class Invocation(Generic[ConfigT]):
    """A parsed command line: the resolved configuration, and the run to resume if there is one."""

    config: ConfigT
    resume: RunFolder | None
    command: tuple[str, ...]


def run_command(
    main: Callable[[Invocation[ConfigT]], None] | str,
    config_type: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    kind: str | None = None,
    commands: Mapping[str, str] | None = None,
) -> int:
    """Parse the command line, run ``main`` and return the exit code.

    Invalid flags, files or data, a disk that is full or not writable, and a missing dependency
    print one sentence on stderr and give exit code 2. Ctrl-C gives 130 and SIGTERM 143; ``main``
    may raise ``KeyboardInterrupt`` with a sentence on how to resume. Any other exception is a bug
    and keeps its traceback.

    Args:
        main: Work of the command, or ``"module:function"`` to import it after the flags are parsed.
        config_type: Its configuration.
        argv: Arguments; ``None`` for those of the process.
        prog: Name on the help page.
        description: Head of the help page.
        kind: Kind of the command's run folders, which enables ``--resume``.
        commands: Configurations of all commands, ``"module:class"``, by name: an error about an
            unknown flag names the command that it belongs to.
    """
    # OpenMP reads this variable once, when torch loads it. Threads that spin while another process
    # needs their core slow torch down by an order of magnitude. An existing value stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if argv is None else argv
    arguments = tuple(_TRUST if word == "--trust_code" else word for word in given)
    threading.excepthook = _leave_to_main_thread
    try:
        with sigterm_as_interrupt() as terminated, trusting(_TRUST in arguments):
            invocation = _parse(arguments, config_type, prog, description, kind, commands or {})
            (resolve_name(main) if isinstance(main, str) else main)(invocation)
    except DfsRlError as error:
        print_status(f"error: {error}")
        return EXIT_BAD_INPUT
    except OSError as error:  # such as a full disk or a folder without write permission
        print_status(f"error: cannot read or write{_error_path(error)}: {error.strerror or error}.")
        return EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        if (error.name or __name__).startswith("dfs_rl"):  # a bug
            raise
        print_status(f"error: {error} for {sys.executable}; install dfs-rl there again.")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as error:
        print_status(str(error) or "Interrupted.")
        return EXIT_TERMINATED if terminated.requested else EXIT_INTERRUPTED
    except SystemExit as request:  # tyro has printed its help page
        return int(request.code or 0)
    return 0


def _parse(
    arguments: tuple[str, ...],
    config_type: type[ConfigT],
    prog: str,
    description: str,
    kind: str | None,
    commands: Mapping[str, str],
) -> Invocation[ConfigT]:
    command = (*prog.split(), *arguments)
    _check_once(arguments, config_type)
    if kind is not None and not {"-h", "--help"} & set(arguments):
        movable = _FLAGS_WITH_RESUME & {f.name for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
        moved, others = _peek(arguments, "resume", *sorted(movable))
        if path := moved.pop("resume", None):
            if unwanted := [word for word in others if word != _TRUST]:
                raise ConfigError(
                    f"--resume {path} continues with the settings of that run; leave out "
                    f"the argument {unwanted[0]}."
                )
            folder = RunFolder.open(Path(path), kind)
            config = dataclasses.replace(folder.config(config_type), **moved)  # type: ignore[type-var]
            _check_trust(config)
            return Invocation(config=config, resume=folder, command=command)

    choices = getattr(config_type, "CHOICES", {}).values()
    named = {"backbone"} & {f.name for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    given, _ = _peek(arguments, "config", *named, *(setting for setting, _ in choices))
    file = given.get("config")
    data = read_yaml(Path(file)) if file is not None else YamlSettings({}, {})
    for setting, types in choices:
        if given.get(setting) in types:  # it selects the type of a block
            data[setting] = given[setting]
    values = fields_from_dict(data, config_type, str(file))
    values = {name: kind() for name, kind in chosen_blocks(config_type, values).items()} | values
    shared = {name: _SHARED_FLAGS[name] for name in _SHARED_FLAGS if name != "resume" or kind}
    flags, complaint = _flags_of(config_type, values, shared), io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed: object = tyro.cli(
                flags, prog=prog, description=description, args=arguments, registry=_REGISTRY
            )
    except SystemExit as request:
        if not request.code:
            raise
        what = error_summary(complaint.getvalue(), flags, config_type, commands)
        raise ConfigError(f"{what}; see {prog} --help.") from request
    _check_paths(parsed)
    config = _build(config_type, parsed)
    if is_constructor(backbone := given.get("backbone")):
        trust_constructor(str(backbone))
    _check_trust(config)
    return Invocation(config=config, resume=None, command=command)


def _peek(arguments: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Return the values of some flags before all flags are parsed, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    try:
        found, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name} needs a value after it.") from error
    return vars(found), others


def _check_paths(parsed: object, prefix: str = "") -> None:
    """Check that the paths among the flags exist, or are free, before slow imports."""
    for name, value in vars(parsed).items():
        if dataclasses.is_dataclass(value):
            _check_paths(value, "" if name == ADVANCED else f"{prefix}{name}.")
        elif name == "dataset" and value is not None:
            dataset_folder(value)
        elif name == "run_dir" and value is not None:
            check_new(value)
        elif name not in _CREATED:
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and not (path.exists() or is_constructor(path)):
                    hint = get_type_hints(type(parsed), include_extras=True)[name]
                    is_word = tyro.conf.Positional in get_args(hint)
                    given = name.upper() if is_word else f"{prefix}{name}"  # as on the help page
                    raise ConfigError(f"{given}: {path} does not exist.")


def _check_trust(config: object) -> None:
    """Check that the user trusts the constructor that a configuration, perhaps a file's, names."""
    code = str(getattr(config, "backbone", None))
    if is_constructor(code) and not is_trusted(code):
        raise ConfigError(
            f"the backbone is made by {code}, code that a file asks to run; if you trust it, give "
            f"{_TRUST}."
        )


def _check_once(arguments: Sequence[str], config_type: type) -> None:
    """Check that no value is empty and no flag repeated, of which tyro uses the last value."""
    hints = get_type_hints(config_type, include_extras=True)
    several = {name for name, hint in hints.items() if tyro.conf.UseAppendAction in get_args(hint)}
    # The parser treats --run_dir as --run-dir, and --flip and --no-flip set the same field.
    flags = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    settings = Counter(re.sub(r"(^--|\.)no-", r"\1", flag) for flag in flags)
    if "" in arguments or any(a.startswith("--") and a.endswith("=") for a in arguments):
        raise ConfigError("an argument is empty; give a value, or leave out its flag.")
    for flag, times in settings.items():
        if times > 1 and flag.removeprefix("--").replace("-", "_") not in several:
            raise ConfigError(f"{flag} is given {times} times; once is allowed.")


def _flags_of(cls: type, values: Mapping[str, object], extra: Mapping[str, object]) -> type:
    """Build the plain dataclass that tyro parses; the configuration itself is checked later.

    ``values`` are defaults that replace those of ``cls``; ``extra`` are the types of further flags,
    whose default is ``None``.
    """
    hints = get_type_hints(cls, include_extras=True) | chosen_blocks(cls, values)
    texts = _help_texts(cls)
    first: list[_Field] = []
    blocks: list[_Field] = []
    later: list[_Field] = []
    screen = getattr(cls, "FIRST", None)
    given = {field.name: field for field in dataclasses.fields(cls) if field.init}
    order = [*(screen or ()), *(name for name in given if name not in (screen or ()))]
    for name in order:
        hint, value = hints[name], values.get(name, given[name].default)
        is_block = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        word = name.upper() if value is dataclasses.MISSING else f"[{name.upper()}]"
        # Settings of the block of advanced ones have no prefix.
        about = tyro.conf.arg(
            help=texts.get(name, ""),
            prefix_name=is_block or screen is None,
            metavar=word if tyro.conf.Positional in get_args(hint) else None,
            # Without a value the text tells what happens.
            help_behavior_hint="" if value in (None, ()) else None,
        )
        if is_block:
            part = _flags_of(hint, vars(value) if name in values else {}, {})
            blocks.append((name, Annotated[part, about], dataclasses.field(default_factory=part)))
            continue
        if value is dataclasses.MISSING:
            value = tyro.MISSING
        flags = first if screen is None or name in screen else later
        hint = Annotated[_with_choices(hint), about]
        flags.append((name, hint, dataclasses.field(default=value)))
    first += [(name, hint, dataclasses.field(default=None)) for name, hint in extra.items()]
    if extra:
        trust = tyro.conf.arg(help=_TRUST_HELP, prefix_name=False)
        hint = Annotated[bool, tyro.conf.FlagCreatePairsOff, trust]
        (later or first).append(("trust_code", hint, dataclasses.field(default=False)))
    if later:
        advanced = dataclasses.make_dataclass("Advanced", later, frozen=True, kw_only=True)
        hint = Annotated[advanced, tyro.conf.arg(help="")]
        blocks.append((ADVANCED, hint, dataclasses.field(default_factory=advanced)))
    return dataclasses.make_dataclass(cls.__name__, first + blocks, frozen=True, kw_only=True)


def _with_choices(hint: Any) -> Any:  # noqa: ANN401 - any type hint
    """Replace names of a registry by a ``Literal``, whose values help pages list."""
    parts = get_args(hint)
    for part in parts:
        if isinstance(part, NameIn):
            return Literal[part.names] if part.names else str
    if get_origin(hint) is tuple:
        return tuple[tuple(_with_choices(part) for part in parts)]  # type: ignore[misc]
    return hint


def _help_texts(cls: type) -> dict[str, str]:
    """Return the help text of every field from the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for item in docstring_parser.parse(base.__doc__ or "", DocstringStyle.GOOGLE).params:
            texts[item.arg_name] = " ".join((item.description or "").split())
    return texts


def _build(cls: type[ConfigT], parsed: object) -> ConfigT:
    """Build a configuration from the flags that tyro parsed."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        inside = parsed if hasattr(parsed, field.name) else getattr(parsed, ADVANCED, None)
        if field.init:
            values[field.name] = getattr(inside, field.name)
    types = get_type_hints(cls) | chosen_blocks(cls, values)
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            try:
                values[name] = _build(types[name], value)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
    return cls(**values)


def _error_path(error: OSError) -> str:
    if error.filename:
        return f" {error.filename}"
    try:
        Path.cwd()
    except FileNotFoundError:
        return " in the current folder, which is no longer there"
    return ""


def _leave_to_main_thread(failed: threading.ExceptHookArgs) -> None:
    """Print the exception of a thread, except of TensorBoard's, which the main thread raises."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failed)
