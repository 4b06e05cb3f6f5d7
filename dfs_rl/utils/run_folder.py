"""The folder that every command writes: configuration, versions, metrics, checkpoints, pictures."""

import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dfs_rl.errors import BusyError, CheckpointError, DataError, RunFolderError
from dfs_rl.utils.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dfs_rl.utils.config import config_to_dict, dump_yaml, flat_settings, load_config, read_yaml
from dfs_rl.utils.io import (
    LOCK,
    OnWait,
    add_path_to_errors,
    file_lock,
    read_json,
    remove_stale_temporaries,
    sync,
    to_json_value,
    write_bytes_atomic,
    write_json,
)
from dfs_rl.utils.run_records import read_record

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
_OWN_FOLDERS = ("checkpoints", "gate", "backbone", "backbone-before", "plots", "tensorboard")
"""Of one run alone; others hold runs, which other processes may be writing to."""
_NEW_RUN_SUFFIX = ".new-run"
"""End of the name of the hidden folder that a run is made in."""
_MIN_STALE_SECONDS = 60.0
"""Seconds in which a process that makes a run has surely locked its hidden folder."""
_MAX_FILE_BYTES = 2**26
"""Bytes; what a run begins with stays far below."""
_RECORDED_PACKAGES = ("dfs-rl", "torch", "numpy", "gymnasium", "stable-baselines3")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``run.json`` holds.

    Attributes:
        format: Of the run folder.
        kind: Which command wrote it.
        command: The command line, program first.
        created: When, in UTC.
        seed: Of the configuration.
        device: Of the configuration.
        versions: Of Python and of packages.
        machine: What it ran on.
        data: ``Dataset.fingerprint`` of the images that it is about.
        files: SHA-256 of every other file that the run began with, by name; none for runs of
            earlier versions.
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
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What ``timing.json`` holds: the seconds that were spent on a run."""

    seconds: float


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
        """Start a new run, which is there whole or not at all: it is made in a hidden folder that is renamed at the end.

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
            BusyError: If another process is making one there.
        """
        contents = {_CONFIG: _config_bytes(config), **(files or {})}
        record = _make_record(kind, config, command, contents, fingerprint)
        for place in [path] if path is not None else _default_folders(name):
            try:
                with _new_run_folder(place, contents) as new_folder:
                    for file, content in contents.items():
                        write_bytes_atomic(new_folder / file, content)
                    write_json(new_folder / RECORD, config_to_dict(record))
            except OSError as error:  # noqa: PERF203 - rarely twice
                raise RunFolderError(f"cannot write a run to {place}: {error.strerror}.") from error
            except RunFolderError:
                if path is not None:
                    raise
            else:
                return cls(place, kind)
        raise AssertionError("there is always another default folder")

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
        _check_no_links(path)
        described = read_json(path / RECORD)
        found = described.get("kind") if isinstance(described, dict) else None
        if not isinstance(described, dict) or not isinstance(found, str):
            raise RunFolderError(
                f"{path / RECORD} is damaged: it does not say what kind of run this is."
            )
        if described.get("format") != FORMAT:
            raise RunFolderError(
                f"{path} has run format {described.get('format')!r}; this version of dfs-rl reads "
                f"format {FORMAT}."
            )
        if kind is not None and found != kind:
            raise RunFolderError(f"{path} holds a run of kind {found}; kind {kind} is needed here.")
        run = cls(path, found)
        for file, digest in run.record().files.items():
            if not _has_digest(path / file, digest):
                raise RunFolderError(
                    f"{path / file} is not what the run stored there: it is missing, cut off or "
                    "edited. A run goes on with its own "
                    "settings alone; put the file back, or begin another run."
                )
        run._timing()
        return run

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

    def record(self) -> RunRecord:
        """Return what ``run.json`` says: kind, command, versions, machine, seed, device, time."""
        return read_record(self.path / RECORD, RunRecord)

    def config(self, cls: type[T]) -> T:
        """Return the configuration that the run stored.

        Raises:
            ConfigError: If it is not one of class ``cls``.
            RunFolderError: If it is not all there.
        """
        config = load_config(self.config_path, cls)
        if _CONFIG in self.record().files:  # it was checked as a whole, see ``open``
            return config
        given = flat_settings(read_yaml(self.config_path))
        missing = [name for name in flat_settings(config_to_dict(config)) if name not in given]
        if missing:
            raise RunFolderError(
                f"{self.config_path} lacks {missing[0]}, so it is cut off or of an earlier "
                "version; a run goes on with what it stored "
                "alone. Put the whole file back, or begin another run."
            )
        return config

    def replace_config(self, config: object) -> None:
        """Store another configuration, under which the run goes on."""
        content = _config_bytes(config)
        record = self.record()
        files = {name: digest for name, digest in record.files.items() if name != _CONFIG}
        # A process that is killed between two of these leaves either configuration, and no digest of the other.
        write_json(self.path / RECORD, config_to_dict(replace(record, files=files)))
        write_bytes_atomic(self.config_path, content)
        files[_CONFIG] = _digest(content)
        write_json(self.path / RECORD, config_to_dict(replace(record, files=files)))

    @contextmanager
    def lock(self, *, on_wait: OnWait = None) -> Iterator[None]:
        """Keep other processes out until the block ends, and remove what killed ones left half-written.

        Args:
            on_wait: As for ``file_lock``.

        Raises:
            BusyError: If another process is in and ``on_wait`` is ``None``.
        """
        with file_lock(self.path, on_wait=on_wait):
            shutil.rmtree(self.path / _NEW_RUN_SUFFIX, ignore_errors=True)
            for folder in (self.path, *(self.path / name for name in _OWN_FOLDERS)):
                remove_stale_temporaries(folder)
            try:
                yield
            except OSError as error:
                if (
                    error.filename is None
                ):  # a full disk, of which TensorBoard's writer names no file
                    error.filename = str(self.path)
                raise

    def check_data(self, fingerprint: str, name: str) -> None:
        """Refuse to go on with other images than the run was begun on.

        Args:
            fingerprint: Of the images at hand.
            name: What their data set is called.

        Raises:
            DataError: If they are not the run's.
        """
        run_fingerprint = self.record().data
        if run_fingerprint not in (None, fingerprint):
            raise DataError(
                f"{self.path} was begun on other images or splits than those of data set {name!r} "
                f"(fingerprint {run_fingerprint}, not "
                f"{fingerprint}); it can only go on with its own."
            )

    def log(self, record: Mapping[str, object]) -> None:
        """Append one record to the metrics; NaN and infinities become ``null``."""
        line = json.dumps(to_json_value(record), allow_nan=False, ensure_ascii=False) + "\n"
        with add_path_to_errors(self.metrics_path):
            with self.metrics_path.open("ab"):  # made, if need be
                _drop_partial_line(self.metrics_path)
            try:
                with self.metrics_path.open("ab") as file:
                    file.write(line.encode())
            except OSError:  # a full disk takes a part of the line
                _drop_partial_line(self.metrics_path)
                raise

    def read_metrics(self) -> list[dict[str, object]]:
        """Return the logged records in order; a last line torn by a killed writer does not count.

        Raises:
            RunFolderError: If any other line is damaged.
        """
        return self._parsed(self._complete_lines())

    def _parsed(self, lines: Sequence[bytes]) -> list[dict[str, object]]:
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RunFolderError(f"{self.metrics_path} is damaged in line {number}.") from error
            if not isinstance(record, dict):
                raise RunFolderError(f"{self.metrics_path} is damaged in line {number}.")
            records.append(record)
        return records

    def truncate_metrics(self, n_lines: int) -> None:
        """Keep the first ``n_lines`` records, for a run that resumes where it had logged that many.

        Raises:
            RunFolderError: If there are fewer, or one of them is damaged.
        """
        lines = self._complete_lines()
        if len(lines) < n_lines:
            raise RunFolderError(
                f"{self.metrics_path} has {len(lines)} records, but the checkpoint was made after "
                f"{n_lines}."
            )
        self._parsed(lines[:n_lines])
        write_bytes_atomic(self.metrics_path, b"".join(lines[:n_lines]))

    def add_seconds(self, seconds: float) -> float:
        """Count time that was spent on the run, over all of its resumptions; what a killed process spent is lost.

        Returns:
            All that was counted.
        """
        total = self._timing().seconds + seconds
        write_json(self.path / _TIMING, config_to_dict(Timing(seconds=total)))
        return total

    def _timing(self) -> Timing:
        path = self.path / _TIMING
        return read_record(path, Timing) if path.exists() else Timing(seconds=0.0)

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


def _default_folders(name: str) -> Iterator[Path]:
    stem = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}"
    yield Path("runs") / stem
    yield from (Path("runs") / f"{stem}-{number}" for number in itertools.count(2))


def _new_folder_path(path: Path) -> Path:
    """Return the hidden folder to make a run in: beside ``path``, or inside if that is there, for it may be a mount point."""
    return (
        path / _NEW_RUN_SUFFIX
        if path.is_dir()
        else path.with_name(f".{path.name}{_NEW_RUN_SUFFIX}")
    )


@contextmanager
def _new_run_folder(path: Path, files: Collection[str]) -> Iterator[Path]:
    """Give a hidden folder to write a run to, ``run.json`` last; it becomes ``path`` when the block ends well.

    What a killed process left there goes.

    Raises:
        RunFolderError: If ``path`` is taken.
        BusyError: If another process is making a run there.
    """
    new_folder = _new_folder_path(path)
    if not new_folder.is_dir():
        _check_free(path, files)
    if new_folder.is_symlink():
        raise RunFolderError(
            f"{new_folder} is a symbolic link; remove it, for a run is made there."
        )
    _remove_stale_folders(path.parent)
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(new_folder))
        except BusyError as error:
            raise BusyError(
                f"another process is making a run in {path}; wait until it ends."
            ) from error
        try:
            _remove_leftovers(new_folder, path)
            _check_free(path, files)
            yield new_folder
            if new_folder.parent == path:
                for file in (*files, RECORD):  # the last one makes it a run
                    (new_folder / file).rename(path / file)
                shutil.rmtree(new_folder)
            else:
                new_folder.rename(path)
        except BaseException:
            _remove_leftovers(new_folder, path)
            shutil.rmtree(new_folder, ignore_errors=True)
            raise
        sync(path)
        sync(path.parent)


def _remove_leftovers(new_folder: Path, path: Path) -> None:
    """Remove what a process that did not come to the end left in the hidden folder, and what it had moved out of there."""
    if new_folder.parent == path and (new_folder / RECORD).is_file():
        with suppress(RunFolderError):
            for file, digest in read_record(new_folder / RECORD, RunRecord).files.items():
                if file == Path(file).name and _has_digest(path / file, digest):
                    (path / file).unlink()
    for left in new_folder.glob("*"):
        if left.name != LOCK:
            left.unlink()


def _remove_stale_folders(folder: Path) -> None:
    """Remove the hidden folders of runs that killed processes left beside each other."""
    for new_folder in folder.glob(f".*{_NEW_RUN_SUFFIX}"):
        with suppress(OSError, BusyError):
            if (
                time.time() - new_folder.lstat().st_mtime > _MIN_STALE_SECONDS
                and not new_folder.is_symlink()
            ):
                with file_lock(new_folder):
                    shutil.rmtree(new_folder)


def _check_free(path: Path, files: Collection[str]) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; a run needs a folder.")
    entries = dict.fromkeys((RECORD, *files, _METRICS, _CHECKPOINTS, *_BACKBONES))
    held = [entry for entry in entries if (path / entry).exists()]
    if held and held[0] != RECORD:  # the user's own
        raise RunFolderError(
            f"{path} has {held[0]} but no {RECORD}, so it is neither a run nor free for one; "
            "choose another folder."
        )
    if held:
        raise RunFolderError(
            f"{path} holds a run already (it has {RECORD}); choose another folder, or go on with "
            f"--resume {path}."
        )
    if path.is_dir():
        _check_no_links(path)


def _check_no_links(path: Path) -> None:
    """Refuse symbolic links, through which a run would write to, and delete from, another place."""
    for entry in path.iterdir():
        if entry.is_symlink():
            raise RunFolderError(
                f"{entry} is a symbolic link; a run keeps its files inside its own folder. Put "
                "what it leads to in its place, or choose "
                "another folder."
            )


def _has_digest(path: Path, digest: str) -> bool:
    # What was written to a run's file since may have any size.
    fits = path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES
    return fits and _digest(path.read_bytes()) == digest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _config_bytes(config: object) -> bytes:
    return dump_yaml(config_to_dict(config)).encode()


def _make_record(
    kind: str,
    config: object,
    command: Sequence[str],
    contents: Mapping[str, bytes],
    fingerprint: str | None,
) -> RunRecord:
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
        files={name: _digest(content) for name, content in contents.items()},
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


def _drop_partial_line(path: Path) -> None:
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
