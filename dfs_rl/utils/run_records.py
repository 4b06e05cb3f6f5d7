"""JSON records of a run, and its creation, safe against kills and against other processes."""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from dfs_rl.errors import BusyError, CheckpointError, ConfigError, DfsRlError, RunFolderError
from dfs_rl.utils.config import config_from_dict
from dfs_rl.utils.io import (
    file_lock,
    read_json,
    remove_stale_temporaries,
    sync_folder,
    write_bytes_atomic,
    write_json,
)

T = TypeVar("T")
FORMAT = 1
"""Format version of run folders."""
RECORD = "run.json"
METRICS = "metrics.jsonl"
NEW_RUN = ".new-run"
"""Hidden folder inside a run folder while its initial files are written."""
_RESERVED = (METRICS, "checkpoints", "backbone", "backbone.json")
"""Entries of a folder that a run would overwrite or hide."""
_MAX_FILE_BYTES = 2**26
"""Size limit in bytes of checksummed files; the initial files of a run are far smaller."""
_RECORDED_PACKAGES = ("dfs-rl", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of ``run.json``; seed and device are those of the configuration, if it has them."""

    format: int
    kind: str
    command: tuple[str, ...]  # program first
    created: str  # ISO format in UTC
    seed: int | None = None
    device: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    data: str | None = None  # Dataset.fingerprint of the run's images
    files: dict[str, str]  # SHA-256 of every other initial file, by name


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Content of ``timing.json``: seconds spent on the run, over all of its resumptions."""

    seconds: float


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that runs record."""
    packages = {name: package_version(name) for name in _RECORDED_PACKAGES}
    return {"python": platform.python_version(), **packages}


def machine() -> dict[str, Any]:
    """Return system, processor, cores and GPU of this machine."""
    torch = sys.modules.get("torch")  # a command that never imported torch uses no GPU
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
    }


def package_version(package: str) -> str | None:
    """Return the version of an installed package, else ``None``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_record(path: Path, cls: type[T]) -> T:
    """Read a JSON file into the dataclass that describes it.

    Raises:
        RunFolderError: If the file is missing, unreadable, not JSON, or not a record of ``cls``.
    """
    return parse_record(read_json(path), cls, source=str(path), error=RunFolderError)


def parse_record(
    record: object, cls: type[T], *, source: str, error: type[DfsRlError] = CheckpointError
) -> T:
    """Check plain values against the dataclass that describes them.

    Raises:
        DfsRlError: Of class ``error``, with ``source`` and the field's name, if the values do not
            match ``cls``.
    """
    if not isinstance(record, Mapping):
        raise error(f"{source} is damaged or of something else: it is not a mapping.")
    try:
        return config_from_dict(record, cls, f"{source} is damaged or of something else")
    except ConfigError as fault:
        raise error(str(fault)) from fault


def write_run(path: Path, record: RunRecord, contents: Mapping[str, bytes]) -> None:
    """Write the initial files of a run; the record becomes visible when the others are complete."""
    new = path / NEW_RUN  # has a lock of its own, since callers may lock the run's folder
    if new.is_symlink() or not new.is_dir():
        check_free(path, contents)
    created = not path.exists()
    try:
        with file_lock(new):
            try:
                _remove_unfinished(path)
                check_free(path, contents)
                write_json(new / RECORD, record)
                for file, content in contents.items():
                    write_bytes_atomic(path / file, content)
                (new / RECORD).rename(path / RECORD)
            except BaseException:
                _remove_unfinished(path)
                shutil.rmtree(new, ignore_errors=True)
                if created:
                    with suppress(OSError):  # other files appeared
                        path.rmdir()
                raise
            shutil.rmtree(new)
    except BusyError as error:
        raise BusyError(
            f"another process is creating a run in {path}; wait until it ends."
        ) from error
    sync_folder(path)
    sync_folder(path.parent)


def _remove_unfinished(path: Path) -> None:
    """Delete what a killed process left of a run that it was creating."""
    remove_stale_temporaries(path)
    unfinished = path / NEW_RUN / RECORD
    if unfinished.is_file():
        for file, expected in read_record(unfinished, RunRecord).files.items():
            if file == Path(file).name and has_digest(path / file, expected):
                (path / file).unlink()
        unfinished.unlink()


def check_free(path: Path, files: Collection[str]) -> None:
    """Raise RunFolderError unless a run with these initial files can be created in a folder."""
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; a run needs a folder.")
    if (path / RECORD).exists():
        raise RunFolderError(
            f"{path} holds a run already (it has {RECORD}); choose another folder, or continue "
            "that run with the flag --resume of its command."
        )
    for entry in (*files, *_RESERVED):
        if (path / entry).exists():  # of the user
            raise RunFolderError(
                f"{path} has {entry} but no {RECORD}, so it is neither a run nor free for one; "
                "choose another folder."
            )
    if path.is_dir():
        check_no_links(path)


def check_no_links(path: Path) -> None:
    """Check that a run folder has no symbolic links, which lead writes and deletes elsewhere."""
    for entry in path.iterdir():
        if entry.is_symlink():
            raise RunFolderError(
                f"{entry} is a symbolic link, but a run stores its files inside its own folder; "
                "replace the link by its target, or choose another folder."
            )


def has_digest(path: Path, expected: str) -> bool:
    """Return whether a file exists and has the SHA-256 ``expected``."""
    # A file that was changed later may have any size.
    fits = path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES
    return fits and digest(path.read_bytes()) == expected


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
