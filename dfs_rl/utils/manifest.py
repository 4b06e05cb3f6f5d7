"""What a stored model says of itself: JSON beside its weights, with the kind of thing it is and the format it is written in."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dfs_rl.errors import CheckpointError, DfsRlError
from dfs_rl.utils.io import read_json, write_json


def write_manifest(path: Path, *, kind: str, version: int, parts: Mapping[str, object]) -> None:
    """Write ``parts`` with the kind and format in front, atomically."""
    write_json(path, {"format": version, "kind": kind, **parts})


def read_manifest(
    path: Path, *, what: str, kinds: Sequence[str], version: int
) -> dict[str, object]:
    """Read what ``write_manifest`` wrote.

    Args:
        path: The file.
        what: For the message: ``"backbone"``, ``"gate"``.
        kinds: The kinds it may be of.
        version: The format it must have.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind or format.
    """
    try:
        record = read_json(path)
    except DfsRlError as error:
        raise CheckpointError(f"no {what} can be read from {path.parent}: {error}") from error
    if not (
        isinstance(record, dict) and record.get("kind") in kinds and record.get("format") == version
    ):
        allowed = " or ".join(repr(kind) for kind in kinds)
        raise CheckpointError(
            f"{path} does not describe a {what} of kind {allowed} in format {version}."
        )
    return record
