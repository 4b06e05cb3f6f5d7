"""What TensorBoard shows of a sweep, while it runs and after: the curves of all trials under one folder."""

from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial

from dfs_rl.sweeping.progress_reporter import trial_name

_EVENTS = "events.*"


class TensorBoardSync(Callback):
    """Brings the curves up to date whenever a trial is stored on this machine; what is stored elsewhere follows at the end.

    Args:
        folder: For all trials, one folder each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_checkpoint(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],
        trial: Trial,
        checkpoint: Checkpoint,
        **info: Any,  # noqa: ARG002, ANN401
    ) -> None:
        """Show what a trial has just stored."""
        # Tune stores this object, too; the sweep's folder may have been moved since.
        is_here = (
            isinstance(checkpoint.filesystem, LocalFileSystem) and self._folder.parent.is_dir()
        )
        if is_here:
            sync_events(Path(checkpoint.path), self._folder / trial_name(trial, trials))


def sync_events(stored: Path, shown: Path) -> None:
    """Make the curves that are shown of a trial those that it has stored.

    Args:
        stored: The trial's run folders.
        shown: A folder for their events, which is made if need be.
    """
    for run in sorted(stored.glob("seed*")):
        target = shown / run.name
        target.mkdir(parents=True, exist_ok=True)
        events = {path.name: path for path in (run / "tensorboard").glob(_EVENTS)}
        for old in target.glob(_EVENTS):
            if old.name not in events:  # the trial goes on from another one
                old.unlink()
        for name, path in events.items():
            append_new_events(path, target / name)


def append_new_events(source: Path, target: Path) -> None:
    """Make a copy the same as its source again, which has grown since, or was begun anew.

    TensorBoard keeps files open and reads what is appended; of a file that takes their place it
    would know nothing.
    """
    content = source.read_bytes()
    before = target.read_bytes() if target.exists() else b""
    if content.startswith(before):
        with target.open("ab") as out:
            out.write(content[len(before) :])
    else:
        target.write_bytes(content)
