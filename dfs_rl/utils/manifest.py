"""Manifests of stored models: JSON files next to the weights, with kind and format."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dfs_rl.errors import CheckpointError, DfsRlError
from dfs_rl.utils.io import read_json, write_json


def write_manifest(path: Path, *, kind: str, version: int, parts: Mapping[str, object]) -> None:
    """Write ``parts`` atomically as JSON, preceded by the format and the kind."""
    write_json(path, {"format": version, "kind": kind, **parts})


def read_manifest(
    path: Path, *, what: str, kinds: Sequence[str], version: int
) -> dict[str, object]:
    """Read a manifest and check its kind and format.

    Args:
        path: Manifest file.
        what: Noun for error messages, such as ``"backbone"`` or ``"gate"``.
        kinds: Allowed kinds.
        version: Required format.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind or format.
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
