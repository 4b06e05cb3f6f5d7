"""Settings of ``sweep``, without an import of torch, so that the help page is fast."""

from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import NonNegativeInt, PositiveInt, configuration
from dfs_rl.utils.ray import restrict_ray_to_localhost


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

    KIND: ClassVar[str] = "sweep"
    RUN: ClassVar[str] = "dfs_rl.sweeping.config:run"
    DESCRIPTION: ClassVar[str] = """\
Search settings of train_agent, train_gumbel, train_static or train_backbone as a YAML file says,
retrain the best on fresh seeds, and compare them with the defaults.

Examples:
  python -m dfs_rl.sweep tune_configs/demo.yaml
  python -m dfs_rl.sweep tune_configs/gates.yaml --set backbone=runs/net --trials 8
  python -m dfs_rl.sweep --resume runs/sweep"""

    file: tyro.conf.Positional[Path]
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    dataset: str | None = None
    trials: PositiveInt | None = None
    retrain_seeds: NonNegativeInt | None = None
    address: str | None = None
    cpus: PositiveInt | None = None
    storage_path: str | None = None
    run_dir: Path | None = None


def run(invocation: Invocation[SweepConfig]) -> None:
    """Run or resume a sweep."""
    if invocation.config.address is None:
        restrict_ray_to_localhost()  # before the import below, which imports Ray

    from dfs_rl.sweeping import sweep  # imports torch, slow for a help page

    sweep.run(invocation)
