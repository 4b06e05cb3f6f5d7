"""Constructors of networks, ``module:function``: calling one runs its code, so only what the user names or trusts is called."""

import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from dfs_rl.errors import ConfigError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_ALL = "*"
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
"""Constructors that may be called; ``_ALL`` stands for any."""
_LIBRARY_PATHS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)
"""Where code lies that no user wrote."""
_MAX_ERROR_LENGTH = 300
"""Characters of an error's text; that of torch about weights can fill screens."""


def is_constructor(text: object) -> bool:
    """Say whether a setting names a constructor, ``module:function``, and not a folder or a family."""
    return bool(_NAME.fullmatch(str(text))) and not Path(str(text)).exists()


def trust_constructor(name: str) -> None:
    """Trust a constructor that the user named.

    Args:
        name: ``module:function``.

    Raises:
        ConfigError: If it is no such name.
    """
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{name!r} names no constructor; give module:function, for example mynets:make."
        )
    _trusted.set(_trusted.get() | {name})


def is_trusted(name: str) -> bool:
    """Return whether a constructor may be called."""
    return not _trusted.get().isdisjoint((name, _ALL))


def trusted_code() -> frozenset[str]:
    """Return what is trusted here, for ``trusting`` in another process."""
    return _trusted.get()


@contextmanager
def trusting(code: bool | frozenset[str]) -> Iterator[None]:  # noqa: FBT001 - as trust_code=True
    """Trust, within the block, every constructor, or those that another process trusts; it ends trust that begins in it.

    A stored backbone may come from anyone, so the constructor that it names is imported only if the
    user trusts it.
    """
    more = frozenset({_ALL} if code is True else code or ())
    token = _trusted.set(_trusted.get() | more)
    try:
        yield
    finally:
        _trusted.reset(token)


def call_constructor(name: str) -> object:
    """Import ``module``, from the current folder too, and return what ``function()`` returns.

    Raises:
        ConfigError: If nobody trusts it, it cannot be imported, or it fails.
    """
    if not is_trusted(name):
        raise ConfigError(
            f"the backbone is made by {name}, and loading it would run that code; if you trust it, "
            "give --trust-code, or "
            "trust_code=True in Python."
        )
    module, _, function = name.partition(":")
    with _current_folder_importable():
        with _as_config_error(
            f"constructor {name} cannot be imported",
            f"module {module} must be in {Path.cwd()} or be installed, and have {function}",
        ):
            found = getattr(importlib.import_module(module), function)
        with _as_config_error(
            f"constructor {name} fails",
            "it must be a function that works without arguments and returns a torch.nn.Module or a "
            "backbone",
        ):
            made: object = found()
        return made


@contextmanager
def _as_config_error(what: str, allowed: str) -> Iterator[None]:
    """Within the block, whatever a user's code dies of is one sentence; Ctrl-C stays what it is."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = " ".join([f"{type(error).__name__}:", *said.split()])[:_MAX_ERROR_LENGTH].rstrip(
            ":"
        )
        raise ConfigError(f"{what}: {reason}{_error_location(error)}; {allowed}.") from error


def _error_location(error: BaseException) -> str:
    """Return where the user's own code raised an error, or called what did; nothing if it was not in that code."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(others) for others in _LIBRARY_PATHS):
            return f" ({path}, line {frame.lineno})"
    return ""


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Make what lies in the current folder importable, as it is for ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
