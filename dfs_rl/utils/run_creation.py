"""Creation of run folders, safe against kills and against other processes."""

import hashlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from dfs_rl.errors import BusyError, RunFolderError
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.io import (
    LOCK,
    file_lock,
    remove_stale_temporaries,
    sync,
    write_bytes_atomic,
    write_json,
)
from dfs_rl.utils.run_records import RunRecord, read_record

RECORD = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
_BACKBONES = ("backbone", "backbone.json")
"""Entries that mark a folder with a stored backbone, which a run would overwrite or hide."""
_UNFINISHED = f".{RECORD}.new"
"""Name of the record while the other initial files are written."""
_MAX_FILE_BYTES = 2**26
"""Size limit in bytes of checksummed files; the initial files of a run are far smaller."""


def write_run(path: Path, record: RunRecord, contents: Mapping[str, bytes]) -> None:
    """Write the initial files of a run; the record becomes visible when the others are complete."""
    unfinished = path / _UNFINISHED
    if not unfinished.is_file():
        _check_free(path, contents)
    created = not path.exists()
    try:
        with file_lock(path):
            _remove_unfinished(path)
            _check_free(path, contents)
            try:
                write_json(unfinished, config_to_dict(record))
                for file, content in contents.items():
                    write_bytes_atomic(path / file, content)
                unfinished.rename(path / RECORD)
            except BaseException:
                _remove_unfinished(path)
                if created:
                    with suppress(OSError):  # other files appeared
                        (path / LOCK).unlink()
                        path.rmdir()
                raise
    except BusyError as error:
        raise BusyError(
            f"another process is creating a run in {path}; wait until it ends."
        ) from error
    sync(path)
    sync(path.parent)


def _remove_unfinished(path: Path) -> None:
    """Delete what a killed process left of a run that it was creating."""
    remove_stale_temporaries(path)
    unfinished = path / _UNFINISHED
    if unfinished.is_file():
        for file, expected in read_record(unfinished, RunRecord).files.items():
            if file == Path(file).name and has_digest(path / file, expected):
                (path / file).unlink()
        unfinished.unlink()


def _check_free(path: Path, files: Collection[str]) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; a run needs a folder.")
    entries = dict.fromkeys((RECORD, *files, METRICS, CHECKPOINTS, *_BACKBONES))
    held = [entry for entry in entries if (path / entry).exists()]
    if held and held[0] != RECORD:  # files of the user
        raise RunFolderError(
            f"{path} has {held[0]} but no {RECORD}, so it is neither a run nor free for one; "
            "choose another folder."
        )
    if held:
        raise RunFolderError(
            f"{path} holds a run already (it has {RECORD}); choose another folder, or continue "
            f"with --resume {path}."
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
