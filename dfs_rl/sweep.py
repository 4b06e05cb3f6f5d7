"""``python -m dfs_rl.sweep``: search settings of a training by a file, and train what it found again on fresh seeds."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dfs_rl.cli import Invocation, run_command
from dfs_rl.config import config_to_dict, dump_yaml
from dfs_rl.errors import ConfigError
from dfs_rl.files import exclusive, write_bytes_atomic
from dfs_rl.runs import RunFolder
from dfs_rl.sweeping.loading import load_sweep_file, parse_changes

if TYPE_CHECKING:
    from dfs_rl.sweeping.sweep_file import SweepFile

KIND = "sweep"
PROG = "python -m dfs_rl.sweep"
_PATHS = {"dataset", "backbone", "init_gate"}
"""Settings that may name something on the disk."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What to search and where.

    Attributes:
        file: The sweep, YAML; tune_configs/ has some.
        set: Setting of the command that all trials share, NAME=VALUE with the dotted name; can be given several times.
        trials: How many, instead of what the file says.
        retrain_seeds: Fresh seeds for the best, instead of what the file says.
        address: Ray cluster to run on: "auto" for the one on this machine, or host:port; by default a new one, on this machine alone.
        cpus: CPU cores to use where Ray is started here; default all.
        storage_path: Where trials are stored: a folder, on a cluster one that all nodes share, or a URI that Ray takes, as
            s3://bucket/path; default the run folder.
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
    """

    file: tyro.conf.Positional[Path]
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    trials: int | None = None
    retrain_seeds: int | None = None
    address: str | None = None
    cpus: int | None = None
    storage_path: str | None = None
    run_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")


def resolved(config: SweepConfig) -> "SweepFile":
    """Return the sweep that flags and file ask for, its paths from the root, since workers have folders of their own.

    Raises:
        ConfigError: If it is not allowed.
    """
    given = {"trials": config.trials, "retrain.seeds": config.retrain_seeds}
    own = {name: value for name, value in given.items() if value is not None}
    file = load_sweep_file(config.file, parse_changes(config.set), own)
    settings = dict(file.settings)
    for name in _PATHS & settings.keys():
        path = Path(str(settings[name]))
        if settings[name] is not None and path.exists():
            settings[name] = str(path.resolve())
    return replace(file, settings=settings)


def _write_sweep(file: "SweepFile", path: Path) -> None:
    """Keep the sweep in its folder, so that going on with it needs nothing else."""
    plain = config_to_dict(file)
    plain["search"] = {
        name: {kind: values for kind, values in domain.items() if values is not None}
        for name, domain in plain["search"].items()
    }
    write_bytes_atomic(path, dump_yaml(plain).encode())


def _run(invocation: Invocation[SweepConfig]) -> None:
    """Search, train the best again, and report."""
    from dfs_rl.data import load_dataset
    from dfs_rl.ray_start import start_ray
    from dfs_rl.sweeping.loading import check_on_data
    from dfs_rl.sweeping.sharing import share
    from dfs_rl.sweeping.sweep import FILE, corner_of, hold_sweep

    config, folder = invocation.config, invocation.resume
    if folder is None:
        file = resolved(config)
        dataset = load_dataset(file.base["dataset"])
        check_on_data(file, dataset, config.file)
        corner = corner_of(file, dataset)
        folder = RunFolder.create(
            config.run_dir,
            kind=KIND,
            name=config.file.stem,
            config=config,
            command=invocation.command,
            fingerprint=dataset.fingerprint,
        )
        _write_sweep(file, folder.path / FILE)
    else:
        file = load_sweep_file(folder.path / FILE)
        dataset = load_dataset(file.base["dataset"])
        folder.check_data(dataset.fingerprint, dataset.name)
        corner = corner_of(file, dataset)
    shared = share(dataset)
    with (
        exclusive(folder.path),
        start_ray(address=config.address, cpus=config.cpus, store_bytes=shared.nbytes),
    ):
        try:
            hold_sweep(file, shared, corner, folder, storage=config.storage_path)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Interrupted; go on with: {PROG} --resume {folder.path}"
            ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        _run,
        SweepConfig,
        prog=PROG,
        description="Search settings of a training, reward weights above all, by the rules of a file; train the best again on fresh "
        "seeds and say which one to ship.",
        kind=KIND,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
