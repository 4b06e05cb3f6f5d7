"""Atomic files and strict JSON: a reader sees the previous content or the new one, whole."""

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from dfs_rl.errors import BusyError, RunFolderError

OnWait = Callable[[], None] | None
"""What ``file_lock`` calls before it waits; ``None`` does not wait."""

_JSON_LIMIT = 2**26  # bytes; what this project writes stays far below
_DIGITS = 30  # a text as long is no machine word in any notation
_TEMPORARY_SUFFIX = ".tmp"
_SAFETENSORS_TEMPORARY = ".tmp" + 6 * "[0-9A-Za-z]"
"""What safetensors itself writes before it renames."""
LOCK = ".lock"
"""The file by which a folder is kept for one process."""


@contextmanager
def file_lock(folder: Path, *, on_wait: OnWait = None) -> Iterator[None]:
    """Keep other processes that ask the same out of ``folder`` until the block ends; a killed process keeps nobody out.

    Args:
        folder: Created when missing.
        on_wait: Called once where another process is in, before waiting for it to end; ``None``
            refuses instead.

    Raises:
        BusyError: If another process is in and ``on_wait`` is ``None``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if on_wait is None:
            raise BusyError(
                f"another process is writing to {folder}; wait until it ends, or stop it first."
            ) from None
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the place of ``path`` when the block ends well.

    The new content reaches the disk before the name does, and the name before the block ends, so
    neither a killed process nor a lost machine leaves a half-written file. What a killed process
    leaves behind is a hidden temporary file that nothing reads.

    Args:
        path: The file to create or replace; its folder is created when missing.

    Raises:
        OSError: If the disk is full or may not be written; it names ``path``.
    """
    with add_path_to_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            # mkstemp's 0600 would lock out a group that shares runs
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Name ``path`` in a system error of the block: a full disk names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Create or replace ``path`` with ``data``, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON that any parser reads, atomically; ``to_json_value`` gives its form."""
    write_bytes_atomic(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return the content of the file that ``write_json`` writes."""
    text = json.dumps(to_json_value(value), indent=2, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def check_not_stream(path: Path) -> None:
    """Refuse pipes and devices: opening a pipe would wait for a writer, and a device may have no end.

    Raises:
        OSError: If it is one, or is not there.
    """
    if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


def read_limited(path: Path, *, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: If it cannot be read, is a pipe, device or folder, or is larger.
    """
    check_not_stream(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit / 2**20:g} MiB, the most allowed here")
    return content


def parse_int64(text: str) -> int:
    """Return the whole number that a file's text stands for.

    Raises:
        ValueError: If it needs more than the 64 bits of a machine word.
    """
    value = (
        int(text, 0 if text.lower().startswith(("0x", "0o")) else 10)
        if len(text) < _DIGITS
        else None
    )
    if value is None or not -(2**63) <= value < 2**63:
        raise ValueError(f"{_shown(text)} has more than 64 bits")
    return value


def parse_finite_float(text: str) -> float:
    """Return the finite number that a file's text stands for.

    Raises:
        ValueError: If no float is as large.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)} is larger than any float")
    return value


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        RunFolderError: If it is missing, unreadable, too large or not strict JSON.
    """
    try:
        return json.loads(
            read_limited(path, limit=_JSON_LIMIT),
            parse_int=parse_int64,
            parse_float=parse_finite_float,
            parse_constant=_refuse_constant,
        )
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} does not exist.") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is not valid JSON, so it is damaged or not ours: {error}."
        ) from error


def to_json_value(value: object) -> object:
    """Turn mappings, sequences, paths, scalars and small arrays into plain JSON values.

    JSON has no NaN and no infinity; they become ``null``, which every parser reads and no plot
    mistakes for a number.

    Raises:
        TypeError: If a value has no JSON form, or a key is not a string, number or bool.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_key(key): to_json_value(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json_value(item) for item in value]
        case Path():
            return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
        return to_json_value(value.tolist())
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; only for a folder that has a single writer."""
    for pattern in (f".*{_TEMPORARY_SUFFIX}", _SAFETENSORS_TEMPORARY):
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int | float):
        return str(key)
    raise TypeError(f"a {type(key).__name__} cannot be a JSON key: {key!r}")


def _shown(text: str) -> str:
    return text if len(text) < _DIGITS else f"{text[:_DIGITS]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def sync(path: Path) -> None:
    """Flush a file or, where the system can, a folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask; the only portable way to read it is to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
