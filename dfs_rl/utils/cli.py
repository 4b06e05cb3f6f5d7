"""What every command does around its own work: flags, configuration files, resuming, exit codes.

A command module is a configuration, a main function and this wiring::

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig:  # its docstring's "Attributes" become the help page
        dataset: str = "digits"
        seed: int = 0
        run_dir: Path | None = None


    def train(invocation: Invocation[TrainConfig]) -> None:
        from dfs_rl.training import run  # heavy imports wait until the flags are right

        config = invocation.config
        folder = invocation.resume or RunFolder.create(
            config.run_dir, kind=KIND, name="train", config=config, command=invocation.command
        )
        run(config, folder, resume=invocation.resume is not None)


    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(
            train, TrainConfig, prog="python -m x", description="Train.", kind=KIND, argv=argv
        )


    if __name__ == "__main__":
        sys.exit(main())

A positional argument is a field of type ``tyro.conf.Positional[Path]``. Flags stand in the order of
the fields; nested blocks come after them and give flags such as ``--ppo.clip-range``.
"""

import dataclasses
import io
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar, get_args, get_type_hints

import tyro

from dfs_rl.errors import ConfigError, DfsRlError
from dfs_rl.utils.config import fields_from_dict, read_yaml
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.signals import terminate_like_interrupt
from dfs_rl.utils.trusted_import import allow_constructor, allowed_constructors, is_constructor

ConfigT = TypeVar("ConfigT")

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_CONSTRUCTOR = "--constructor"
"""Says of the function that made a stored network that it is the user's own and may be called."""

_SHARED_FLAGS = {
    "constructor": tyro.conf.arg(
        metavar="MODULE:FUNCTION",
        help="Function of yours that made the network in a folder that is read: reading it calls the function, and without its name "
        "here does not.",
    ),
    "config": tyro.conf.arg(
        metavar="FILE", help="YAML file with any of these settings; flags win over it."
    ),
    "resume": tyro.conf.arg(
        metavar="DIR",
        help="Go on with the run in this folder, with its own settings; --dataset may say where its data is now, and --constructor that "
        "a network is yours.",
    ),
}


_MOVABLE = ("--dataset", "--address")
"""What may stand beside --resume: where the data or a cluster is now, never which images they are."""

_CODE = "--backbone"
"""What may stand beside --resume if it repeats the run's own, to say that a user's code may run."""

_RULE = re.compile(r"[╭╰]|[\s│]*[─-]{3,}[\s│]*$")


@dataclass(frozen=True, kw_only=True)
class Invocation(Generic[ConfigT]):
    """What a command was asked to do.

    Attributes:
        config: The resolved configuration.
        resume: The run to go on with, or ``None`` for a new one.
        command: The command line, for the run's record.
    """

    config: ConfigT
    resume: RunFolder | None
    command: tuple[str, ...]


def run_command(
    main: Callable[[Invocation[ConfigT]], None],
    config_type: type[ConfigT],
    *,
    prog: str,
    description: str,
    kind: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run ``main`` and return the exit code.

    Bad input, from flags, files or data, and a disk that is full or may not be written, is one
    sentence on stderr and exit code 2. Ctrl-C is exit code 130, SIGTERM is 143; ``main`` may raise
    ``KeyboardInterrupt`` with a sentence that says how to go on. Any other exception is a bug and
    keeps its traceback.

    Args:
        main: The work.
        config_type: A frozen dataclass whose docstring documents its fields.
        prog: How the command is called, for example ``"python -m dfs_rl.train_agent"``.
        description: One or two sentences for the help page.
        kind: The kind of the command's run folders; with it the command has ``--resume``.
        argv: Arguments after the program's name; ``None`` takes the process's own.
    """
    # Read once, when torch loads OpenMP: workers that spin while another process wants their core
    # make torch slower by an order of magnitude. A value that is set already stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    threading.excepthook = _leave_to_main_thread
    try:
        with terminate_like_interrupt() as terminated:
            main(_parse(arguments, config_type, prog, description, kind))
    except DfsRlError as error:
        _say(f"error: {error}")
        return EXIT_REFUSED
    except OSError as error:  # a full disk, a folder that may not be written
        _say(f"error: cannot read or write{_place(error)}: {error.strerror or error}.")
        return EXIT_REFUSED
    except KeyboardInterrupt as error:
        _say(str(error) or "Interrupted.")
        return EXIT_TERMINATED if terminated.made else EXIT_INTERRUPTED
    except SystemExit as request:  # tyro has printed its help page
        return int(request.code or 0)
    return 0


def _parse(
    arguments: tuple[str, ...],
    config_type: type[ConfigT],
    prog: str,
    description: str,
    kind: str | None,
) -> Invocation[ConfigT]:
    command = (*prog.split(), *arguments)
    _check_once(arguments, config_type)
    constructor = _value_of(_CONSTRUCTOR, arguments)
    if constructor is not None:
        allow_constructor(constructor)
    resume = _value_of("--resume", arguments) if kind is not None else None
    if resume is not None and not {"-h", "--help"} & set(arguments):
        fields = {f.name for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
        movable = [flag for flag in (*_MOVABLE, _CODE) if flag.removeprefix("--") in fields]
        moved = {flag: _value_of(flag, arguments) for flag in movable}
        folder = _resumable(Path(resume), kind, arguments, movable)
        code = moved.pop(_CODE, None)
        changes = {flag.removeprefix("--"): v for flag, v in moved.items() if v is not None}
        config = dataclasses.replace(folder.config(config_type), **changes)  # type: ignore[type-var]
        if code is not None and code != str(getattr(config, "backbone", None)):
            raise ConfigError(
                f"--resume {resume} goes on with the settings of that run; --backbone {code} cannot stand beside it."
            )
        _allow_code(config, (code, constructor))
        return Invocation(config=config, resume=folder, command=command)

    shared = ("constructor", "config") if kind is None else ("constructor", "config", "resume")
    parsed_type = _with_shared_flags(config_type, shared)
    file = _value_of("--config", arguments)
    given = {} if file is None else fields_from_dict(read_yaml(Path(file)), config_type, file)
    default = _default(parsed_type, given)
    parsed = _parse_flags(arguments, default, prog, description)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(config_type) if f.init}  # type: ignore[arg-type]
    config = config_type(**values)
    _allow_code(config, (_value_of(_CODE, arguments), constructor))
    return Invocation(config=config, resume=None, command=command)


def _allow_code(config: object, named: Sequence[str | None]) -> None:
    """Let a user's own network be made, but only if the command line or the environment names what makes it: a file may be anyone's.

    Raises:
        ConfigError: If only a file names it.
    """
    code = str(getattr(config, "backbone", None))
    if not is_constructor(code):
        return
    if code not in (*named, *allowed_constructors()):
        raise ConfigError(
            f"the backbone is made by {code}, which is code that a file asks to run; if it is yours, say so with {_CONSTRUCTOR} {code}."
        )
    allow_constructor(code)


def _resumable(
    path: Path, kind: str | None, arguments: tuple[str, ...], movable: Sequence[str]
) -> RunFolder:
    others = list(arguments)
    for flag in ("--resume", _CONSTRUCTOR, *movable):
        if flag in others:
            place = others.index(flag)
            del others[place : place + 2]
        others = [argument for argument in others if not argument.startswith(f"{flag}=")]
    if others:
        raise ConfigError(
            f"--resume {path} goes on with the settings of that run; {others[0]} cannot stand beside it."
        )
    return RunFolder.open(path, kind)


def _check_once(arguments: Sequence[str], config_type: type) -> None:
    """Refuse a flag that is given twice, of which the parser would take the last, and empty values, which paths take for here.

    Raises:
        ConfigError: If there is one.
    """
    hints = get_type_hints(config_type, include_extras=True)
    several = {name for name, hint in hints.items() if tyro.conf.UseAppendAction in get_args(hint)}
    # The parser takes --run_dir for --run-dir, and both --flip and --no-flip set one setting.
    flags = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    settings = Counter(re.sub(r"(^--|\.)no-", r"\1", flag) for flag in flags)
    if "" in arguments or any(a.startswith("--") and a.endswith("=") for a in arguments):
        raise ConfigError("an argument is empty; give a value, or leave out its flag.")
    for flag, times in settings.items():
        if times > 1 and flag.removeprefix("--").replace("-", "_") not in several:
            raise ConfigError(f"{flag} is given {times} times; once is allowed.")


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Find the value of a flag that must be known before the others can be parsed."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag:
            following = arguments[place + 1 : place + 2]
            if not following or following[0].startswith("--"):
                raise ConfigError(f"{flag} needs a value after it.")
            return following[0]
    return None


def _with_shared_flags(config_type: type, names: Sequence[str]) -> type:
    """Derive the dataclass that tyro parses: the command's own fields, then the shared flags."""
    return dataclasses.make_dataclass(
        config_type.__name__,
        [
            (
                name,
                Annotated[Path | None, _SHARED_FLAGS[name]],
                dataclasses.field(default=None),
            )
            for name in names
        ],
        bases=(config_type,),
        # Checks across fields wait for the real class: tyro would draw a box around their sentence.
        namespace={"__post_init__": lambda _: None},
        frozen=True,
        kw_only=True,
    )


def _default(parsed_type: type, given: Mapping[str, object]) -> object:
    """Build what tyro starts from: what a file gives, else the field's default, else nothing yet."""
    default: object = object.__new__(parsed_type)
    for field in dataclasses.fields(parsed_type):
        value: object = tyro.MISSING
        if field.name in given:
            value = given[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        object.__setattr__(default, field.name, value)
    return default


def _parse_flags(arguments: Sequence[str], default: object, prog: str, description: str) -> object:
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                type(default), prog=prog, description=description, args=arguments, default=default
            )
    except SystemExit as request:
        if not request.code:
            raise
        raise ConfigError(f"{_sentence(complaint.getvalue())}; see {prog} --help.") from request


def _sentence(complaint: str) -> str:
    """Take what went wrong, and the flag tyro suggests instead, out of the box that tyro draws."""
    paragraphs: list[list[str]] = [[]]
    for line in complaint.splitlines():
        if _RULE.match(line):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line.strip(" │"))
    texts = [" ".join(words) for lines in paragraphs if (words := " ".join(lines).split())]
    if "╭" not in complaint and len(texts) > 1:
        texts = texts[1:]  # without box characters the title stands inside
    what = texts[0] if texts else "the flags cannot be read"
    what = what.removeprefix("Error parsing ").partition(". Got errors: ")[0].rstrip(".")
    meant = [flag for text in texts if "you meant" in text for flag in re.findall(r"--\S+", text)]
    return f"{what}; the closest one is {meant[0]}" if meant else what


def _place(error: OSError) -> str:
    """Return what a system error is about, for its sentence."""
    if error.filename:
        return f" {error.filename}"
    try:
        Path.cwd()
    except FileNotFoundError:
        return " in the current folder, which is no longer there"
    return ""


def _leave_to_main_thread(failed: threading.ExceptHookArgs) -> None:
    """Show what ends a thread, but for TensorBoard's writer: the main thread raises that again when it next writes."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failed)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
