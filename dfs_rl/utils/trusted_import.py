"""Users' own networks by name, ``module:function``: calling one runs the user's code, so only a name that the user gave is called."""

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.errors import ConfigError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
ALLOWED = "DFS_RL_CONSTRUCTORS"
"""Environment variable with the names that may be called, separated by spaces; processes that are started inherit it."""
_NOT_THE_USERS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""Where code lies that no user wrote."""
_LONGEST = 300
"""Characters of an error's text; that of torch about weights can fill screens."""


def is_constructor(text: object) -> bool:
    """Say whether a setting names a constructor, ``module:function``, and not a folder or a family."""
    return bool(_NAME.fullmatch(str(text))) and not Path(str(text)).exists()


def allow_constructor(name: str) -> None:
    """Let this process call a constructor when it loads what was stored with it.

    What a stored backbone names is never called on its own, since the folder may come from anyone; call this, or give a command
    ``--constructor``, to say that the code is yours.

    Args:
        name: ``module:function``.

    Raises:
        ConfigError: If it is no such name.
    """
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{name!r} names no constructor; give module:function, for example mynets:make."
        )
    if name not in allowed_constructors():
        os.environ[ALLOWED] = " ".join([*allowed_constructors(), name])


def call_constructor(name: str) -> object:
    """Import ``module``, from the current folder too, and return what ``function()`` returns.

    Raises:
        ConfigError: If nobody allowed it, it cannot be imported, or it fails.
    """
    if name not in allowed_constructors():
        raise ConfigError(
            f"the backbone is made by {name}, and loading it would run that code; if it is yours, say so: --constructor {name} for a "
            f"command, dfs_rl.utils.trusted_import.allow_constructor({name!r}) in Python, or {ALLOWED}={name} in the environment."
        )
    module, _, function = name.partition(":")
    with _current_folder():
        with _refused(
            f"constructor {name} cannot be imported",
            f"module {module} must be in {Path.cwd()} or be installed, and have {function}",
        ):
            found = getattr(importlib.import_module(module), function)
        with _refused(
            f"constructor {name} fails",
            "it must be a function that works without arguments and returns a torch.nn.Module or a backbone",
        ):
            made: object = found()
        return made


@contextmanager
def _refused(what: str, allowed: str) -> Iterator[None]:
    """Within the block, whatever a user's code dies of is one sentence; Ctrl-C stays what it is."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = " ".join([f"{type(error).__name__}:", *said.split()])[:_LONGEST].rstrip(":")
        raise ConfigError(f"{what}: {reason}{_place(error)}; {allowed}.") from error


def _place(error: BaseException) -> str:
    """Return where the user's own code raised an error, or called what did; nothing if it was not in that code."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(others) for others in _NOT_THE_USERS):
            return f" ({path}, line {frame.lineno})"
    return ""


def allowed_constructors() -> list[str]:
    """Return the names that may be called."""
    return os.environ.get(ALLOWED, "").split()


@contextmanager
def _current_folder() -> Iterator[None]:
    """Make what lies in the current folder importable, as it is for ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
