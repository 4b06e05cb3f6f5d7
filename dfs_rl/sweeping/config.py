"""Settings of ``sweep``, without an import of torch, so that the help page is fast."""

from pathlib import Path
from typing import Annotated

import tyro

from dfs_rl.utils.config import NonNegativeInt, PositiveInt, configuration

KIND = "sweep"
PROG = "python -m dfs_rl.sweep"
DESCRIPTION = """\
Search settings of train_agent, train_gumbel, train_static or train_backbone as a YAML file says,
retrain the best on fresh seeds, and compare them with the defaults.

Examples:
  python -m dfs_rl.sweep tune_configs/demo.yaml
  python -m dfs_rl.sweep tune_configs/gates.yaml --set backbone=runs/net --trials 8
  python -m dfs_rl.sweep --resume runs/sweep"""


@configuration
class SweepConfig:
    """Which sweep to run, and where.

    Attributes:
        file: YAML file of the sweep: the command and the settings to search; tune_configs/ has
            examples, docs/tutorials/sweeps.md explains them. Omit it with --resume.
        set: Setting of the command for all trials, as NAME=VALUE with the dotted name; can be
            repeated, and overrides the file.
        dataset: Data set, instead of the one in the file; with --resume, its current path.
        trials: Number of trials, instead of the one in the file.
        retrain_seeds: Number of fresh seeds for the best trials, instead of the one in the file.
        address: Ray cluster to run on: "auto" for the one on this machine, or host:port; default: a
            new one on this machine only.
        cpus: Number of CPU cores if Ray is started here; default: all.
        storage_path: Storage of the trials: a folder, on a cluster one that all nodes share, or a
            URI that Ray accepts, such as s3://bucket/path; default: the run folder.
        run_dir: New folder for the results; default: runs/DATE-TIME-NAME.
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
