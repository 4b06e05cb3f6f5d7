"""JSON records of a run, each checked against the dataclass that describes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dfs_rl.errors import CheckpointError, ConfigError, DfsRlError, RunFolderError
from dfs_rl.utils.config import config_from_dict
from dfs_rl.utils.io import read_json

T = TypeVar("T")


def read_record(path: Path, cls: type[T]) -> T:
    """Read a JSON file into the dataclass that describes it.

    Raises:
        RunFolderError: If the file is missing, unreadable, not JSON, or not a record of ``cls``.
    """
    return parse_record(read_json(path), cls, source=str(path), error=RunFolderError)


def parse_record(
    record: object,
    cls: type[T],
    *,
    source: str,
    error: type[DfsRlError] = CheckpointError,
) -> T:
    """Check plain values against the dataclass that describes them.

    Args:
        record: Plain values.
        cls: Dataclass that describes them.
        source: Origin of the values, for error messages.
        error: Class of the raised error.

    Raises:
        DfsRlError: Of class ``error``, with the field's name, if the values do not match ``cls``.
    """
    if not isinstance(record, Mapping):
        raise error(f"{source} is damaged or of something else: it is not a mapping.")
    try:
        return config_from_dict(record, cls, f"{source} is damaged or of something else")
    except ConfigError as fault:
        raise error(str(fault)) from fault
