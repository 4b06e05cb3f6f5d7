"""Run folders: configuration, versions, metrics, checkpoints and plots of a command."""

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
"""Name of the latest checkpoint, from which a training resumes."""
_CONFIG = "config.yaml"
_METRICS = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"
_TIMING = "timing.json"
_BACKBONES = ("backbone", "backbone.json")
"""Entries that mark a folder with a stored backbone, which a run would overwrite or hide."""
_OWN_FOLDERS = ("checkpoints", "gate", "backbone", "backbone-before", "plots", "tensorboard")
"""Sub-folders of a single run; other sub-folders contain runs, which may be in use."""
_NEW_RUN_SUFFIX = ".new-run"
"""Suffix of the hidden folder in which a run is created."""
_MIN_STALE_SECONDS = 60.0
"""Age in seconds from which an unlocked hidden folder of a new run counts as stale."""
_MAX_FILE_BYTES = 2**26
"""Size limit in bytes of checksummed files; the initial files of a run are far smaller."""
_RECORDED_PACKAGES = ("dfs-rl", "torch", "numpy", "gymnasium", "stable-baselines3")

T = TypeVar("T")


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
        files: SHA-256 of every other initial file of the run, by name; empty for runs of earlier
            versions.
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
    """Content of ``timing.json``.

    Attributes:
        seconds: Time spent on the run, over all of its resumptions.
    """

    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Layout: ``run.json`` (command, time and versions), ``config.yaml``, ``metrics.jsonl``,
    ``checkpoints/``, ``tensorboard/``, ``plots/``. Use ``create`` or ``open`` to get an instance.

    Attributes:
        path: Folder of the run.
        kind: Command that wrote the run, for example ``"train_agent"``.
        after_save: Callback after each checkpoint, for observers of the run.
        after_log: Callback with each record of the metrics, once it is stored.
    """

    path: Path
    kind: str
    after_save: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    after_log: Callable[[Mapping[str, Any]], None] | None = field(
        default=None, compare=False, repr=False
    )

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
        """Create a new run atomically.

        The run is written to a hidden folder that is renamed at the end.

        Args:
            path: Folder of the run, created if missing; ``None`` creates a new folder
                ``runs/<date>-<time>-<name>``.
            kind: Command that writes the run.
            name: Last part of the default folder's name.
            config: Resolved configuration, a dataclass; its ``seed`` and ``device`` are recorded if
                it has them.
            command: Command line, program first.
            fingerprint: ``Dataset.fingerprint`` of the run's images; see ``check_data``.
            files: Contents of further initial files, by name.

        Returns:
            The new run.

        Raises:
            RunFolderError: If the folder already contains a run, or is not writable.
            BusyError: If another process is creating a run there.
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
        """Open an existing run and check its initial files.

        Args:
            path: Folder of the run.
            kind: Required kind; ``None`` accepts any.

        Raises:
            RunFolderError: If the folder is no run, is damaged, or is of another kind or format.
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
        """Path of the resolved configuration, YAML."""
        return self.path / _CONFIG

    @property
    def metrics_path(self) -> Path:
        """Path of the metrics, one JSON record per line."""
        return self.path / _METRICS

    @property
    def tensorboard_dir(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def plots_dir(self) -> Path:
        """Folder of plots."""
        return self.path / "plots"

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of checkpoints."""
        return self.path / _CHECKPOINTS

    def record(self) -> RunRecord:
        """Read ``run.json``.

        Raises:
            RunFolderError: If it is missing or damaged.
        """
        return read_record(self.path / RECORD, RunRecord)

    def config(self, cls: type[T]) -> T:
        """Return the stored configuration of the run.

        Args:
            cls: Class of the configuration.

        Raises:
            ConfigError: If the file is not a configuration of class ``cls``.
            RunFolderError: If the file is incomplete.
        """
        config = load_config(self.config_path, cls)
        if _CONFIG in self.record().files:  # ``open`` has checked the whole file
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
        """Replace the stored configuration; the run continues with the new one."""
        content = _config_bytes(config)
        record = self.record()
        files = {name: digest for name, digest in record.files.items() if name != _CONFIG}
        # A process killed between these writes leaves one configuration without a wrong digest.
        write_json(self.path / RECORD, config_to_dict(replace(record, files=files)))
        write_bytes_atomic(self.config_path, content)
        files[_CONFIG] = _digest(content)
        write_json(self.path / RECORD, config_to_dict(replace(record, files=files)))

    @contextmanager
    def lock(self, *, on_wait: OnWait = None) -> Iterator[None]:
        """Lock the run until the block ends, and delete temporary files of killed processes.

        Args:
            on_wait: Called once before waiting for another process's lock; ``None`` raises instead.

        Raises:
            BusyError: If another process has the lock and ``on_wait`` is ``None``.
        """
        with file_lock(self.path, on_wait=on_wait):
            shutil.rmtree(self.path / _NEW_RUN_SUFFIX, ignore_errors=True)
            for folder in (self.path, *(self.path / name for name in _OWN_FOLDERS)):
                remove_stale_temporaries(folder)
            try:
                yield
            except OSError as error:
                # TensorBoard's writer names no file in the error of a full disk.
                if error.filename is None:
                    error.filename = str(self.path)
                raise

    def check_data(self, fingerprint: str, name: str) -> None:
        """Check that the images are those on which the run started.

        Args:
            fingerprint: ``Dataset.fingerprint`` of the current images.
            name: Name of their data set, for the error message.

        Raises:
            DataError: If the run has another fingerprint.
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
            with self.metrics_path.open("ab"):  # creates the file if missing
                _drop_partial_line(self.metrics_path)
            try:
                with self.metrics_path.open("ab") as file:
                    file.write(line.encode())
            except OSError:  # a full disk may have stored a part of the line
                _drop_partial_line(self.metrics_path)
                raise
        if self.after_log is not None:
            self.after_log(record)

    def read_metrics(self) -> list[dict[str, object]]:
        """Return the logged records in order, without an incomplete last line.

        Raises:
            RunFolderError: If a complete line is damaged.
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
        """Keep the first ``n_lines`` records, those logged before the checkpoint of a resumed run.

        Raises:
            RunFolderError: If there are fewer records, or one of them is damaged.
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
        """Add time spent on the run to the total over all of its resumptions.

        The time of a killed process is lost.

        Args:
            seconds: Time to add.

        Returns:
            Total time in seconds.
        """
        total = self._timing().seconds + seconds
        write_json(self.path / _TIMING, config_to_dict(Timing(seconds=total)))
        return total

    def _timing(self) -> Timing:
        path = self.path / _TIMING
        return read_record(path, Timing) if path.exists() else Timing(seconds=0.0)

    def has_checkpoint(self, name: str) -> bool:
        """Return whether the checkpoint ``name`` exists."""
        return self._checkpoint_path(name).is_file()

    def save_checkpoint(
        self, name: str, tensors: Mapping[str, "Tensor"], state: Mapping[str, object]
    ) -> None:
        """Write or replace the checkpoint ``name`` atomically.

        Args:
            name: Name of the checkpoint, for example ``LAST_CHECKPOINT``.
            tensors: Weights and optimizer moments by name.
            state: JSON values, all numbers finite.
        """
        remove_stale_temporaries(self.checkpoint_dir)
        save_checkpoint(self._checkpoint_path(name), tensors, state)
        if self.after_save is not None:
            self.after_save()

    def load_checkpoint(self, name: str) -> Checkpoint:
        """Load the checkpoint ``name``.

        Raises:
            CheckpointError: If the checkpoint is missing or damaged.
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
    """Return the hidden folder in which a run is created.

    It is inside ``path`` if that exists, since ``path`` may be a mount point, else next to it.
    """
    return (
        path / _NEW_RUN_SUFFIX
        if path.is_dir()
        else path.with_name(f".{path.name}{_NEW_RUN_SUFFIX}")
    )


@contextmanager
def _new_run_folder(path: Path, files: Collection[str]) -> Iterator[Path]:
    """Yield a hidden folder that becomes ``path`` when the block ends without an error.

    Leftovers of a killed process are deleted first.

    Args:
        path: Folder of the run.
        files: Names of the initial files other than ``run.json``.

    Yields:
        Folder to write the run to, ``run.json`` last.

    Raises:
        RunFolderError: If ``path`` is not free.
        BusyError: If another process is creating a run there.
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
    """Delete the files of an unfinished creation in the hidden folder and those already moved."""
    if new_folder.parent == path and (new_folder / RECORD).is_file():
        with suppress(RunFolderError):
            for file, digest in read_record(new_folder / RECORD, RunRecord).files.items():
                if file == Path(file).name and _has_digest(path / file, digest):
                    (path / file).unlink()
    for left in new_folder.glob("*"):
        if left.name != LOCK:
            left.unlink()


def _remove_stale_folders(folder: Path) -> None:
    """Delete the hidden folders of new runs that killed processes left in ``folder``."""
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
    if held and held[0] != RECORD:  # files of the user
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
    """Check that a run folder has no symbolic links, which lead writes and deletes elsewhere."""
    for entry in path.iterdir():
        if entry.is_symlink():
            raise RunFolderError(
                f"{entry} is a symbolic link; a run keeps its files inside its own folder. Put "
                "what it leads to in its place, or choose "
                "another folder."
            )


def _has_digest(path: Path, digest: str) -> bool:
    # A file that was changed later may have any size.
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
    """Truncate a file after its last newline, where a killed writer may have left a part."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
