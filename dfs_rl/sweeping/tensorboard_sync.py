"""Copies of all trials' TensorBoard events under one folder, during and after a sweep."""

from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial

from dfs_rl.sweeping.progress_reporter import trial_name

_EVENTS = "events.*"


class TensorBoardSync(Callback):
    """Copies events whenever a trial stores a checkpoint on this machine.

    Events of checkpoints on other storage are copied at the end of the sweep.

    Args:
        folder: Target folder, with one sub-folder per trial.
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
        """Copy the events of a new checkpoint."""
        # Tune stores this callback; the sweep's folder may have moved since then.
        is_here = (
            isinstance(checkpoint.filesystem, LocalFileSystem) and self._folder.parent.is_dir()
        )
        if is_here:
            sync_events(Path(checkpoint.path), self._folder / trial_name(trial, trials))


def sync_events(stored: Path, shown: Path) -> None:
    """Make the copied events of a trial equal to the stored ones.

    Args:
        stored: Folder with the trial's run folders.
        shown: Folder for the copied events; created if missing.
    """
    for run in sorted(stored.glob("seed*")):
        target = shown / run.name
        target.mkdir(parents=True, exist_ok=True)
        events = {path.name: path for path in (run / "tensorboard").glob(_EVENTS)}
        for old in target.glob(_EVENTS):
            if old.name not in events:  # the trial was copied from another one
                old.unlink()
        for name, path in events.items():
            append_new_events(path, target / name)


def append_new_events(source: Path, target: Path) -> None:
    """Make a copy equal to its source, which may have grown or been replaced.

    New content is appended where possible: TensorBoard keeps files open and does not notice a
    replaced file.
    """
    content = source.read_bytes()
    before = target.read_bytes() if target.exists() else b""
    if content.startswith(before):
        with target.open("ab") as out:
            out.write(content[len(before) :])
    else:
        target.write_bytes(content)
