"""JSON that a run stores: each file has one dataclass that describes it, and is checked against it when it is read."""

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
        RunFolderError: If it is missing, unreadable, no JSON, or another record.
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
        record: The values.
        cls: The dataclass.
        source: Where they come from.
        error: What to raise.

    Raises:
        DfsRlError: Of class ``error``, if they are not what ``cls`` describes; it names the field.
    """
    if not isinstance(record, Mapping):
        raise error(f"{source} is damaged or of something else: it is not a mapping.")
    try:
        return config_from_dict(record, cls, f"{source} is damaged or of something else")
    except ConfigError as fault:
        raise error(str(fault)) from fault
