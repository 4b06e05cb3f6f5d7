"""Run folders: configuration, versions, metrics, checkpoints and plots of a command."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from dfs_rl.errors import CheckpointError, DataError, RunFolderError
from dfs_rl.utils.config import config_bytes, load_config
from dfs_rl.utils.io import (
    OnWait,
    add_path_to_errors,
    file_lock,
    remove_stale_temporaries,
    to_json_value,
    write_bytes_atomic,
    write_json,
)
from dfs_rl.utils.run_records import (
    FORMAT,
    METRICS,
    NEW_RUN,
    RECORD,
    RunRecord,
    Timing,
    check_free,
    check_no_links,
    digest,
    has_digest,
    machine,
    read_record,
    versions,
    write_run,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dfs_rl.utils.checkpoint import Checkpoint

TRAINING_FILE = "training.json"
"""File that marks the training of a gate as finished."""
LAST_CHECKPOINT = "last"
"""Name of the latest checkpoint, from which a training resumes."""
BACKBONE_KINDS = ("train_backbone", "train_exits")
"""Kinds of runs that make a backbone and no gate."""
_CONFIG = "config.yaml"
_TIMING = "timing.json"
_OWN_FOLDERS = ("checkpoints", "gate", "backbone", "backbone-before", "plots", "tensorboard")
"""Sub-folders of a single run; other sub-folders contain runs, which may be in use."""

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Layout: ``run.json`` (command, time and versions), ``config.yaml``, ``metrics.jsonl``,
    ``checkpoints/``, ``tensorboard/``, ``plots/``. Use ``create`` or ``open`` to get an instance.
    Observers of a run set ``after_save``, called after each checkpoint, and ``after_log``, called
    with each record of the metrics once it is stored.
    """

    path: Path
    kind: str  # the command that wrote the run, for example "train_agent"
    after_save: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    after_log: Callable[[Mapping[str, object]], None] | None = field(
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
        """Create a new run.

        ``run.json`` is written last. A killed process leaves a folder without it, which a later
        call cleans up.

        Args:
            path: Folder of the run; ``None`` creates ``runs/<date>-<time>-<name>``.
            kind: Command that writes the run.
            name: Last part of the default folder's name.
            config: Resolved configuration, a dataclass; its seed and device, if any, are recorded.
            command: Command line, program first.
            fingerprint: ``Dataset.fingerprint`` of the run's images; see ``check_data``.
            files: Contents of further initial files, by name.

        Raises:
            RunFolderError: If the folder already contains a run, or is not writable.
            BusyError: If another process is creating a run there.
        """
        contents = {_CONFIG: config_bytes(config), **(files or {})}
        record = RunRecord(
            format=FORMAT,
            kind=kind,
            command=tuple(command),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seed=getattr(config, "seed", None),
            device=getattr(config, "device", None),
            versions=versions(),
            machine=machine(),
            data=fingerprint,
            files={file: digest(content) for file, content in contents.items()},
        )
        for place in [path] if path is not None else _default_folders(name):
            try:
                write_run(place, record, contents)
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
        """Open an existing run, of ``kind`` if given, and check its initial files.

        Raises:
            RunFolderError: If the folder is no run, is damaged, or is of another kind or format.
        """
        if not path.is_dir():
            raise RunFolderError(f"{path} is not a folder, so it holds no run.")
        if not (path / RECORD).is_file():
            raise RunFolderError(f"{path} holds no run: it has no {RECORD}.")
        check_no_links(path)
        record = read_record(path / RECORD, RunRecord)
        if record.format != FORMAT:
            raise RunFolderError(
                f"{path} has run format {record.format}; this version of dfs-rl reads format "
                f"{FORMAT}."
            )
        if kind not in (None, record.kind):
            raise RunFolderError(
                f"{path} is a run of kind {record.kind}; kind {kind} is needed here."
            )
        for file, expected in record.files.items():
            if not has_digest(path / file, expected):
                raise RunFolderError(
                    f"{path / file} is not what the run stored there: it is missing, cut off or "
                    "edited. A run continues with its own settings alone; restore the file, or "
                    "start another run."
                )
        run = cls(path, record.kind)
        run._seconds()  # raises if it is damaged
        return run

    @property
    def is_finished(self) -> bool:
        """True if the training of a gate or a backbone has ended."""
        last = "backbone/backbone.json" if self.kind in BACKBONE_KINDS else TRAINING_FILE
        return (self.path / last).is_file()

    @property
    def resume_command(self) -> str:
        """Command line that resumes the run."""
        return f"{program(self.kind)} --resume {self.path}"

    @property
    def config_path(self) -> Path:
        """Path of the resolved configuration, YAML."""
        return self.path / _CONFIG

    @property
    def metrics_path(self) -> Path:
        """Path of the metrics, one JSON record per line."""
        return self.path / METRICS

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
        return self.path / "checkpoints"

    def record(self) -> RunRecord:
        """Read ``run.json``."""
        return read_record(self.path / RECORD, RunRecord)

    def config(self, cls: type[T]) -> T:
        """Return the stored configuration of the run, of class ``cls``."""
        return load_config(self.config_path, cls)

    def replace_config(self, config: object) -> None:
        """Replace the stored configuration; the run continues with the new one."""
        content = config_bytes(config)
        record = self.record()
        files = {name: value for name, value in record.files.items() if name != _CONFIG}
        # A process killed between these writes leaves one configuration without a wrong digest.
        write_json(self.path / RECORD, replace(record, files=files))
        write_bytes_atomic(self.config_path, content)
        files[_CONFIG] = digest(content)
        write_json(self.path / RECORD, replace(record, files=files))

    @contextmanager
    def lock(self, *, on_wait: OnWait = None) -> Iterator[None]:
        """Lock the run like ``file_lock``, and delete temporary files of killed processes."""
        with file_lock(self.path, on_wait=on_wait):
            shutil.rmtree(self.path / NEW_RUN, ignore_errors=True)
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
        """Raise DataError unless the ``fingerprint`` of the images is that of the run's images."""
        run_fingerprint = self.record().data
        if run_fingerprint not in (None, fingerprint):
            raise DataError(
                f"{self.path} was begun on other images or splits than those of data set "
                f"{name!r} (fingerprint {run_fingerprint}, not {fingerprint}); it can only "
                "continue with its own."
            )

    def log(self, record: Mapping[str, object]) -> None:
        """Append one record to the metrics; NaN and infinities become ``null``."""
        line = json.dumps(to_json_value(record), allow_nan=False, ensure_ascii=False) + "\n"
        with add_path_to_errors(self.metrics_path):
            try:
                with self.metrics_path.open("ab+") as file:  # creates the file if missing
                    _drop_partial_line(file)
                    file.write(line.encode())
            except OSError:  # a full disk may have stored a part of the line
                with self.metrics_path.open("rb+") as file:
                    _drop_partial_line(file)
                raise
        if self.after_log is not None:
            self.after_log(record)

    def read_metrics(self) -> list[dict[str, object]]:
        """Return the logged records in order, without an incomplete last line."""
        return [record for _, record in self._metrics()]

    def truncate_metrics(self, n_lines: int) -> None:
        """Keep the first ``n_lines`` records, logged before the checkpoint of a resumed run."""
        kept = [line for line, _ in itertools.islice(self._metrics(), n_lines)]
        if len(kept) < n_lines:
            raise RunFolderError(
                f"{self.metrics_path} has {len(kept)} records, but the checkpoint was made after "
                f"{n_lines}."
            )
        write_bytes_atomic(self.metrics_path, b"".join(kept))

    def _metrics(self) -> Iterator[tuple[bytes, dict[str, object]]]:
        """Yield each complete line of the metrics and its record."""
        content = self.metrics_path.read_bytes() if self.metrics_path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise RunFolderError(f"{self.metrics_path} is damaged in line {number}.")
            yield line, record

    def add_seconds(self, seconds: float) -> float:
        """Add time spent on the run, and return the total in seconds over all resumptions."""
        total = self._seconds() + seconds
        write_json(self.path / _TIMING, {"seconds": total})
        return total

    def _seconds(self) -> float:
        path = self.path / _TIMING
        return read_record(path, Timing).seconds if path.exists() else 0.0

    def has_checkpoint(self, name: str) -> bool:
        """Return whether the checkpoint ``name`` exists."""
        return self._checkpoint_path(name).is_file()

    def save_checkpoint(
        self, name: str, tensors: Mapping[str, "Tensor"], state: Mapping[str, object]
    ) -> None:
        """Write or replace a checkpoint atomically; see ``checkpoint.save_checkpoint``."""
        from dfs_rl.utils.checkpoint import save_checkpoint

        remove_stale_temporaries(self.checkpoint_dir)
        save_checkpoint(self._checkpoint_path(name), tensors, state)
        if self.after_save is not None:
            self.after_save()

    def load_checkpoint(self, name: str) -> "Checkpoint":
        """Load the checkpoint ``name``; see ``checkpoint.load_checkpoint``."""
        from dfs_rl.utils.checkpoint import load_checkpoint

        if not self.has_checkpoint(name):
            raise CheckpointError(f"{self.path} has no checkpoint {name!r}.")
        return load_checkpoint(self._checkpoint_path(name))

    def _checkpoint_path(self, name: str) -> Path:
        return self.checkpoint_dir / f"{name}.safetensors"


def program(kind: str) -> str:
    """Return the command line prefix that runs a command."""
    return f"python -m dfs_rl.{kind}"


def unfinished_training(path: Path) -> str:
    """Return how to continue the training in a folder; empty if it has finished or is none."""
    if not (path / RECORD).is_file():
        return ""
    with suppress(RunFolderError):  # the weights beside a damaged record may be intact
        run = RunFolder(path, read_record(path / RECORD, RunRecord).kind)
        if run.kind.startswith("train_") and not run.is_finished:
            return f"the training of {path} is not finished; continue it with: {run.resume_command}"
    return ""


def check_trained(path: Path) -> None:
    """Raise RunFolderError for the run of an unfinished training; other folders pass."""
    if unfinished := unfinished_training(path):
        raise RunFolderError(unfinished)


def check_new(path: Path) -> None:
    """Raise RunFolderError if a folder cannot take a new run, before slow work."""
    try:
        if not (path / NEW_RUN).is_dir():  # of a process that was killed
            check_free(path, [_CONFIG])
    except OSError as error:
        raise RunFolderError(f"cannot create a run in {path}: {error}.") from error


def _default_folders(name: str) -> Iterator[Path]:
    stem = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}"
    yield Path("runs") / stem
    yield from (Path("runs") / f"{stem}-{number}" for number in itertools.count(2))


def _drop_partial_line(file: IO[bytes]) -> None:
    """Truncate a file after its last newline, where a killed writer may have left a part."""
    file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
