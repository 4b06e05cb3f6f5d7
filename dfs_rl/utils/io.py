"""Atomic files, file locks and strict JSON.

A reader of an atomic file sees either all of the previous content or all of the new content.
"""

import dataclasses
import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from dfs_rl.errors import BusyError, DfsRlError, RunFolderError

OnWait = Callable[[], None] | None
"""Callback of ``file_lock`` before it waits; ``None`` raises instead of waiting."""

_JSON_LIMIT = 2**26  # bytes; files of this project are far smaller


@contextmanager
def file_lock(folder: Path, *, on_wait: OnWait = None) -> Iterator[None]:
    """Lock ``folder``, created if missing, until the block or this process ends.

    Raises:
        BusyError: If another process has the lock and ``on_wait`` is ``None``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
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
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Set the file name of an OSError in the block, which a full disk leaves out, to ``path``."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Create or replace ``path``, and its folder if missing, with ``data``.

    The content is flushed to disk before the rename, and the rename before the return, so neither a
    killed process nor a crashed machine leaves more than a hidden file that nothing reads.

    Raises:
        OSError: With ``path``, if the disk is full or not writable.
    """
    with add_path_to_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            # mkstemp's mode 0600 would lock out a group that shares runs.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``path`` when the block ends without an error.

    A killed process leaves a hidden folder that nothing reads, and never a part of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as hidden:
        new = Path(hidden) / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(Path(hidden) / "old")
        new.rename(path)
    sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raise OSError unless the folder of ``path``, or the nearest that exists, takes new files."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with add_path_to_errors(path), tempfile.TemporaryFile(dir=folder):
        pass


def write_json(path: Path, value: object) -> None:
    """Write ``value`` atomically as strict JSON, converted by ``to_json_value``."""
    write_bytes_atomic(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return ``value`` as the UTF-8 JSON that ``write_json`` writes."""
    text = json.dumps(to_json_value(value), indent=2, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def check_not_stream(path: Path) -> None:
    """Raise OSError for a pipe, which waits for a writer, or a device, which may never end."""
    if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


def read_limited(path: Path, *, limit: int, error: type[DfsRlError]) -> bytes:
    """Read a regular file of at most ``limit`` bytes; for any other one raise ``error``."""
    try:
        check_not_stream(path)
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as fault:
        raise error(f"{path} does not exist.") from fault
    except IsADirectoryError as fault:
        raise error(f"{path} is a folder, but a file is needed here.") from fault
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}.") from fault
    if len(content) > limit:
        most = f"{limit / 2**20:g} MiB"
        raise error(f"{path} cannot be read: it has more than {most}, the most allowed here.")
    return content


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        RunFolderError: If the file is missing, unreadable, too large or not strict JSON.
    """
    content = read_limited(path, limit=_JSON_LIMIT, error=RunFolderError)
    try:
        return json.loads(
            content, parse_int=_parse_int64, parse_float=_parse_finite, parse_constant=_parse_finite
        )
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is not valid JSON, so it is damaged, or was not written by dfs_rl: {error}."
        ) from error


def to_json_value(value: object, *, finite: bool = True) -> Any:  # noqa: ANN401 - any JSON value
    """Convert dataclasses, mappings, sequences, paths, scalars and small arrays to plain values.

    If ``finite``, NaN and infinities, which JSON lacks, become ``null``.

    Raises:
        TypeError: If a value has no JSON form, or a key is not a string, number or bool.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) or not finite else None
        case Mapping():
            return {_key(key): to_json_value(item, finite=finite) for key, item in value.items()}
        case list() | tuple():
            return [to_json_value(item, finite=finite) for item in value]
        case Path():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return to_json_value(settings, finite=finite)
    if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
        return to_json_value(value.tolist(), finite=finite)
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def remove_stale_temporaries(folder: Path) -> None:
    """Delete temporary files of killed writers in a folder with a single writer."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _key(key: object) -> str:
    if not isinstance(key, str | int | float):
        raise TypeError(f"a {type(key).__name__} cannot be a JSON key: {key!r}")
    return str(key)


def _parse_int64(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"an integer of {len(text)} characters has more than 64 bits")
    return value


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, except on Windows."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask, which portable code can read only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
