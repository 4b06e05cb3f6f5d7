"""The folder that every command writes: configuration, versions, metrics, checkpoints, pictures."""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_rl.config import save_config
from dfs_rl.errors import CheckpointError, DataError, RunFolderError
from dfs_rl.files import (
    read_json,
    remove_stale_temporaries,
    to_json_value,
    write_bytes_atomic,
    write_json,
)
from dfs_rl.runs.tensors import Checkpoint, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
RECORD = "run.json"
LAST_CHECKPOINT = "last"
"""Name of the checkpoint that a training goes on from, which each new one replaces."""
_CONFIG = "config.yaml"
_METRICS = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"
_TIMING = "timing.json"
_BACKBONES = ("backbone", "backbone.json")
"""Somebody's network lies in a folder that has one of these; a run there would write over it, or hide it."""
_RECORDED_PACKAGES = ("dfs-rl", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Layout: ``run.json`` (what ran, when, with which versions), ``config.yaml``,
    ``metrics.jsonl``, ``checkpoints/``, ``tensorboard/``, ``plots/``. Make one with ``create`` or
    ``open``.

    Attributes:
        path: The folder.
        kind: Which command wrote it, for example ``"train_agent"``.
        after_save: Called after each checkpoint, for whoever watches the run from outside.
    """

    path: Path
    kind: str
    after_save: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def create(
        cls,
        path: Path | None,
        *,
        kind: str,
        name: str,
        config: object,
        command: Sequence[str],
        fingerprint: str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> "RunFolder":
        """Start a new run.

        Args:
            path: The folder, created when missing; ``None`` makes ``runs/<date>-<time>-<name>``,
                never twice the same.
            kind: Which command this is.
            name: What the default folder is called after.
            config: The resolved configuration, a dataclass; its ``seed`` and ``device`` are
                recorded when it has them.
            command: The command line, program first.
            fingerprint: ``Dataset.fingerprint`` of the images that it is about, see ``check_data``.
            files: What else belongs to the run from its beginning, by name.

        Raises:
            RunFolderError: If the folder holds a run already, or cannot be written.
        """
        try:
            folder = cls(_new_default_folder(name) if path is None else _claim(path), kind)
            save_config(config, folder.config_path)
            for file, content in (files or {}).items():
                write_bytes_atomic(folder.path / file, content)
            # Last, because this file makes the folder a run.
            write_json(
                folder.path / RECORD,
                {**_describe(kind, config, command), "data": fingerprint},
            )
        except OSError as error:
            place = path if path is not None else "runs/"
            raise RunFolderError(f"cannot write a run to {place}: {error.strerror}.") from error
        return folder

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> "RunFolder":
        """Open a run that exists.

        Args:
            path: Its folder.
            kind: Which command it must be from; ``None`` takes any.

        Raises:
            RunFolderError: If it is no run, damaged, from another command or from a newer version.
        """
        if not path.is_dir():
            raise RunFolderError(f"{path} is not a folder, so it holds no run.")
        if not (path / RECORD).is_file():
            raise RunFolderError(f"{path} holds no run: it has no {RECORD}.")
        record = read_json(path / RECORD)
        found = record.get("kind") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(found, str):
            raise RunFolderError(
                f"{path / RECORD} is damaged: it does not say what kind of run this is."
            )
        if record.get("format") != FORMAT:
            raise RunFolderError(
                f"{path} has run format {record.get('format')!r}; this version of dfs-rl reads format {FORMAT}."
            )
        if kind is not None and found != kind:
            raise RunFolderError(f"{path} holds a run of kind {found}; kind {kind} is needed here.")
        return cls(path, found)

    @property
    def config_path(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / _CONFIG

    @property
    def metrics_path(self) -> Path:
        """One JSON record per line."""
        return self.path / _METRICS

    @property
    def tensorboard_dir(self) -> Path:
        """Where TensorBoard events go."""
        return self.path / "tensorboard"

    @property
    def plots_dir(self) -> Path:
        """Where pictures go."""
        return self.path / "plots"

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints go."""
        return self.path / _CHECKPOINTS

    def record(self) -> dict[str, object]:
        """Return what ``run.json`` says: kind, command, versions, machine, seed, device, time."""
        record = read_json(self.path / RECORD)
        if not isinstance(record, dict):
            raise RunFolderError(f"{self.path / RECORD} is damaged: it is not a mapping.")
        return record

    def check_data(self, fingerprint: str, name: str) -> None:
        """Refuse to go on with other images than the run was begun on.

        Args:
            fingerprint: Of the images at hand.
            name: What their data set is called.

        Raises:
            DataError: If they are not the run's.
        """
        begun_on = self.record().get("data")
        if begun_on not in (None, fingerprint):
            raise DataError(
                f"{self.path} was begun on other images or splits than those of data set {name!r} (fingerprint {begun_on}, not "
                f"{fingerprint}); it can only go on with its own."
            )

    def log(self, record: Mapping[str, object]) -> None:
        """Append one record to the metrics; NaN and infinities become ``null``."""
        line = json.dumps(to_json_value(record), allow_nan=False, ensure_ascii=False) + "\n"
        with self.metrics_path.open("ab") as file:
            _drop_torn_line(self.metrics_path)
            file.write(line.encode())

    def read_metrics(self) -> list[dict[str, object]]:
        """Return the logged records in order; a last line torn by a killed writer does not count.

        Raises:
            RunFolderError: If any other line is damaged.
        """
        records = []
        for number, line in enumerate(self._complete_lines(), start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RunFolderError(f"{self.metrics_path} is damaged in line {number}.") from error
            if not isinstance(record, dict):
                raise RunFolderError(f"{self.metrics_path} is damaged in line {number}.")
            records.append(record)
        return records

    def truncate_metrics(self, n_lines: int) -> None:
        """Keep the first ``n_lines`` records, for a run that resumes where it had logged that many.

        Raises:
            RunFolderError: If there are fewer.
        """
        lines = self._complete_lines()
        if len(lines) < n_lines:
            raise RunFolderError(
                f"{self.metrics_path} has {len(lines)} records, but the checkpoint was made after {n_lines}."
            )
        write_bytes_atomic(self.metrics_path, b"".join(lines[:n_lines]))

    def add_seconds(self, seconds: float) -> float:
        """Count time that was spent on the run, over all of its resumptions; what a killed process spent is lost.

        Returns:
            All that was counted.
        """
        path = self.path / _TIMING
        known = read_json(path) if path.is_file() else {}
        before = known.get("seconds", 0.0) if isinstance(known, dict) else 0.0
        total = float(before) + seconds
        write_json(path, {"seconds": total})
        return total

    def has_checkpoint(self, name: str) -> bool:
        """Say whether a checkpoint of that name was ever completed."""
        return self._checkpoint_path(name).is_file()

    def save_checkpoint(
        self, name: str, tensors: Mapping[str, "Tensor"], state: Mapping[str, object]
    ) -> None:
        """Replace the checkpoint ``name`` by these tensors and this state, both or neither.

        Args:
            name: For example ``LAST_CHECKPOINT``.
            tensors: Weights and optimiser moments.
            state: JSON values, all numbers finite.
        """
        remove_stale_temporaries(self.checkpoint_dir)
        save_checkpoint(self._checkpoint_path(name), tensors, state)
        if self.after_save is not None:
            self.after_save()

    def load_checkpoint(self, name: str) -> Checkpoint:
        """Return the newest complete checkpoint ``name``.

        Raises:
            CheckpointError: If there is none or it is damaged.
        """
        if not self.has_checkpoint(name):
            raise CheckpointError(f"{self.path} has no checkpoint {name!r}.")
        return load_checkpoint(self._checkpoint_path(name))

    def _checkpoint_path(self, name: str) -> Path:
        return self.checkpoint_dir / f"{name}.safetensors"

    def _complete_lines(self) -> list[bytes]:
        if not self.metrics_path.exists():
            return []
        return [
            line
            for line in self.metrics_path.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]


def _new_default_folder(name: str) -> Path:
    stem = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}"
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def _claim(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; a run needs a folder.")
    entries = (RECORD, _CONFIG, _METRICS, _CHECKPOINTS, *_BACKBONES)
    held = [entry for entry in entries if (path / entry).exists()]
    if (
        held and held[0] != RECORD
    ):  # of a run that was killed in its first moment, or the user's own
        raise RunFolderError(
            f"{path} has {held[0]} but no {RECORD}, so it is neither a run nor free for one; choose another folder."
        )
    if held:
        raise RunFolderError(
            f"{path} holds a run already (it has {RECORD}); choose another folder, or go on with --resume {path}."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _describe(kind: str, config: object, command: Sequence[str]) -> dict[str, object]:
    return {
        "format": FORMAT,
        "kind": kind,
        "command": list(command),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": getattr(config, "seed", None),
        "device": getattr(config, "device", None),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _RECORDED_PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": _gpu_name(),
        },
    }


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


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed writer left behind the last newline."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
