"""Users' own networks by name, ``module:function``: calling one runs the user's code, so only a name that the user gave is called."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.errors import ConfigError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
ALLOWED = "DFS_RL_CONSTRUCTORS"
"""Environment variable with the names that may be called, separated by spaces; processes that are started inherit it."""


def is_constructor(text: object) -> bool:
    """Say whether a setting names a constructor, ``module:function``, and not a folder or a family."""
    return bool(_NAME.fullmatch(str(text))) and not Path(str(text)).exists()


def allow_constructor(name: str) -> None:
    """Let this process call a constructor when it loads what was stored with it.

    What a stored backbone names is never called on its own, since the folder may come from anyone; call this, or give
    ``--backbone``, to say that the code is yours.

    Args:
        name: ``module:function``.

    Raises:
        ConfigError: If it is no such name.
    """
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{name!r} names no constructor; give module:function, for example mynets:make."
        )
    if name not in _allowed():
        os.environ[ALLOWED] = " ".join([*_allowed(), name])


def call_constructor(name: str) -> object:
    """Import ``module``, from the current folder too, and return what ``function()`` returns.

    Raises:
        ConfigError: If nobody allowed it, or it cannot be imported.
    """
    if name not in _allowed():
        raise ConfigError(
            f"the backbone is made by {name}, and loading it would run that code; if it is yours, say so: --backbone {name} for evaluate "
            f"and --resume, dfs_rl.load(..., backbone={name!r}) in Python, or {ALLOWED}={name} in the environment."
        )
    module, _, function = name.partition(":")
    with _current_folder():
        try:
            found: Callable[[], object] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"constructor {name} cannot be imported: {error}; it must be importable from {Path.cwd()} or be installed."
            ) from error
        return found()


def _allowed() -> list[str]:
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
