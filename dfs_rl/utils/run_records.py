"""JSON records of a run, each checked against the dataclass that describes it."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from dfs_rl.errors import CheckpointError, ConfigError, DfsRlError, RunFolderError
from dfs_rl.utils.config import config_from_dict
from dfs_rl.utils.io import read_json

T = TypeVar("T")
FORMAT = 1
"""Format version of run folders."""
_RECORDED_PACKAGES = ("dfs-rl", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of ``run.json``.

    Attributes:
        format: Format version of the run folder.
        kind: Command that wrote the run.
        command: Command line, program first.
        created: Time of creation, ISO format in UTC.
        seed: Seed of the configuration, if it has one.
        device: Device of the configuration, if it has one.
        versions: Versions of Python and of packages.
        machine: System, processor, cores and GPU.
        data: ``Dataset.fingerprint`` of the run's images.
        files: SHA-256 of every other initial file of the run, by name.
    """

    format: int
    kind: str
    command: tuple[str, ...]
    created: str
    seed: int | None = None
    device: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    files: dict[str, str]


def new_record(
    kind: str,
    config: object,
    command: Sequence[str],
    *,
    files: dict[str, str],
    fingerprint: str | None,
) -> RunRecord:
    """Return the record of a run that starts now on this machine."""
    return RunRecord(
        format=FORMAT,
        kind=kind,
        command=tuple(command),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=getattr(config, "seed", None),
        device=getattr(config, "device", None),
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in _RECORDED_PACKAGES},
        },
        machine={
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": _gpu_name(),
        },
        data=fingerprint,
        files=files,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # a command that never imported torch uses no GPU
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


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
