"""Import of network constructors, ``module:function``, that the user named or trusts.

Calling a constructor runs its code, which may come from anyone.
"""

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
"""Names of trusted constructors; ``_ALL`` trusts every one."""
_LIBRARY_PATHS = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
_INSTALLED = {"site-packages", "dist-packages"}  # of any environment that this one builds on
_MAX_ERROR_LENGTH = 300  # characters; torch's texts can fill screens


def is_constructor(text: object) -> bool:
    """Return whether a setting is ``module:function`` rather than a folder or a family."""
    return bool(_NAME.fullmatch(str(text))) and not Path(str(text)).exists()


def trust_constructor(name: str) -> None:
    """Add a constructor, ``module:function``, that the user named to the trusted ones.

    Raises:
        ConfigError: If ``name`` does not have this form.
    """
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{name!r} names no constructor; give module:function, for example mynets:make."
        )
    _trusted.set(_trusted.get() | {name})


def is_trusted(name: str) -> bool:
    """Return whether a constructor is trusted."""
    return not _trusted.get().isdisjoint((name, _ALL))


def trusted_code() -> frozenset[str]:
    """Return the trusted constructors, for ``trusting`` in another process."""
    return _trusted.get()


@contextmanager
def trusting(code: bool | frozenset[str]) -> Iterator[None]:  # noqa: FBT001 - as trust_code=True
    """Trust every constructor within the block, no further one, or those of another process.

    The end of the block also ends trust that starts inside it.
    """
    more = frozenset({_ALL} if code is True else code or ())
    token = _trusted.set(_trusted.get() | more)
    try:
        yield
    finally:
        _trusted.reset(token)


def call_constructor(name: str) -> object:
    """Import ``module`` and return the result of ``function()``.

    The current folder is on the import path.

    Raises:
        ConfigError: If the constructor is not trusted, cannot be imported, or fails.
    """
    if not is_trusted(name):
        raise ConfigError(
            f"the backbone is made by {name}, and loading it would run that code; if you trust it, "
            "give --trust-code, or trust_code=True in Python."
        )
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as ``python -m`` does
    try:
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
    finally:
        sys.path.remove(here)


@contextmanager
def _as_config_error(what: str, allowed: str) -> Iterator[None]:
    """Turn any error of user code in the block into a ConfigError, except Ctrl-C."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = " ".join([f"{type(error).__name__}:", *said.split()])[:_MAX_ERROR_LENGTH]
        place = _error_location(error)
        raise ConfigError(f"{what}: {reason.rstrip(':')}{place}; {allowed}.") from error


def _error_location(error: BaseException) -> str:
    """Return file and line of the innermost frame in user code; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        library = _INSTALLED.intersection(path.parts) or any(
            map(path.is_relative_to, _LIBRARY_PATHS)
        )
        if path.is_file() and not library:
            return f" ({path}, line {frame.lineno})"
    return ""
