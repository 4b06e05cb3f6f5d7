"""Settings of ``sweep``; free of torch, so that its help page is quick."""

from pathlib import Path
from typing import Annotated

import tyro

from dfs_rl.utils.config import NonNegativeInt, PositiveInt, configuration

KIND = "sweep"
PROG = "python -m dfs_rl.sweep"


@configuration
class SweepConfig:
    """What to search and where.

    Attributes:
        file: The sweep, YAML: which command, which settings; tune_configs/ has some, docs/sweeps.md
            explains them. Leave it out beside --resume.
        set: Setting of the command that all trials share, NAME=VALUE with the dotted name; can be
            given several times, and wins over the file.
        dataset: Data set, instead of what the file says; beside --resume, where it is now.
        trials: How many, instead of what the file says.
        retrain_seeds: Fresh seeds for the best, instead of what the file says.
        address: Ray cluster to run on: "auto" for the one on this machine, or host:port; by default
            a new one, on this machine alone.
        cpus: CPU cores to use where Ray is started here; default all.
        storage_path: Where trials are stored: a folder, on a cluster one that all nodes share, or a
            URI that Ray takes, as s3://bucket/path; default the run folder.
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
    """

    file: tyro.conf.Positional[Path]
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    dataset: str | None = None
    trials: PositiveInt | None = None
    retrain_seeds: NonNegativeInt | None = None
    address: str | None = None
    cpus: PositiveInt | None = None
    storage_path: str | None = None
    run_dir: Path | None = None
