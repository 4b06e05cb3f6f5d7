"""``python -m dfs_rl.sweep``: search settings of a training and retrain the best on fresh seeds."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_rl.errors import ConfigError
from dfs_rl.experiments.backbone_resolver import load_data
from dfs_rl.sweeping.config import KIND, PROG, SweepConfig
from dfs_rl.sweeping.loading import load_sweep_file, parse_overrides
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict, dump_yaml
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from dfs_rl.sweeping.spec import SweepFile

_TRIAL_BYTES = 20_000
"""Bytes of memory per trial, mostly for its settings."""
_PATHS = {"dataset", "backbone", "weights", "init_gate"}
"""Settings that can name a file or folder."""


def resolved(config: SweepConfig) -> "SweepFile":
    """Return the sweep of the flags and the file, with absolute paths.

    Paths are absolute because each worker has its own working folder.

    Raises:
        ConfigError: If the sweep is invalid.
    """
    given = {"trials": config.trials, "retrain.seeds": config.retrain_seeds}
    overrides = {name: value for name, value in given.items() if value is not None}
    changes = parse_overrides(config.set)
    if config.dataset is not None:
        changes["dataset"] = config.dataset
    file = _loaded(config.file, changes, overrides)
    return replace(
        file,
        settings={
            name: _from_root(value) if name in _PATHS else value
            for name, value in file.settings.items()
        },
    )


def _loaded(
    path: Path, changes: Mapping[str, object], overrides: Mapping[str, object]
) -> "SweepFile":
    """Read a sweep with overrides; an error names the overrides if the file alone is valid."""
    try:
        return load_sweep_file(path, changes, overrides)
    except ConfigError as error:
        if not (changes or overrides):
            raise
        try:
            load_sweep_file(path)
        except ConfigError:
            raise error from None
        said = re.sub(r"^.*?(, line \d+)?: ", "", str(error), count=1)
        raise ConfigError(f"{path} with the flags beside it: {said}") from error


def _from_root(value: object) -> object:
    """Return the absolute path if ``value`` names a file or folder, else ``value`` unchanged.

    The name of the data set in the package takes precedence over a path.
    """
    if not isinstance(value, str) or value == DIGITS or not Path(value).exists():
        return value
    return str(Path(value).resolve())


def _sweep_bytes(file: "SweepFile") -> bytes:
    """Return the sweep as YAML for its run folder, so that resuming needs no other file."""
    plain = config_to_dict(file)
    plain["search"] = {
        name: {kind: values for kind, values in domain.items() if values is not None}
        for name, domain in plain["search"].items()
    }
    return dump_yaml(plain).encode()


def run(invocation: Invocation[SweepConfig]) -> None:
    """Search, retrain the best trials, and write the report."""
    from dfs_rl.utils.ray import restrict_ray_to_localhost, start_ray

    if invocation.config.address is None:
        restrict_ray_to_localhost()  # before the imports below, which import Ray

    import torch

    from dfs_rl.data import load_dataset
    from dfs_rl.sweeping.commands import command_of
    from dfs_rl.sweeping.loading import check_with_dataset
    from dfs_rl.sweeping.sweep import FILE, reference_point_of, run_sweep, storage_of
    from dfs_rl.sweeping.tuner import check_resources
    from dfs_rl.utils.device import check_cpus, check_memory

    config, folder = invocation.config, invocation.resume
    if folder is None:
        file = resolved(config)
    else:
        moved = {} if config.dataset is None else {"dataset": _from_root(config.dataset)}
        file = load_sweep_file(folder.path / FILE, moved)
    if config.cpus is not None and folder is None:  # a sweep may resume with fewer cores
        check_cpus("cpus", config.cpus)
    trained = file.retrain.best * file.retrain.seeds
    check_memory(
        {
            f"trials is {file.trials}": float(file.trials * _TRIAL_BYTES),
            f"retrain.best times retrain.seeds is {trained}": float(trained * _TRIAL_BYTES),
            f"seeds is {file.seeds}": float(file.seeds * _TRIAL_BYTES),
        },
        torch.device("cpu"),
    )
    base = file.config({})
    if command_of(file.command).trains_gates:
        dataset = load_data(base)
    else:
        dataset = load_dataset(base.dataset, image_size=base.image_size, flip=base.flip)
    if folder is None:
        check_with_dataset(file, dataset, config.file)
    else:
        folder.check_data(dataset.fingerprint, dataset.name)
    reference_point = reference_point_of(file, dataset)
    with start_ray(address=config.address, cpus=config.cpus, store_bytes=dataset.memory_bytes):
        check_resources(file.resources, shares_storage=config.storage_path is not None)
        if folder is None:
            folder = _create_run(file, dataset.fingerprint, invocation)
        with folder.lock():
            try:
                run_sweep(file, dataset, reference_point, folder, storage=storage_of(folder))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"Interrupted; go on with: {PROG} --resume {folder.path}"
                ) from None


def _create_run(
    file: "SweepFile", fingerprint: str, invocation: Invocation[SweepConfig]
) -> RunFolder:
    """Create the run folder of a sweep, after a check that its trials can be stored."""
    from dfs_rl.sweeping.sweep import FILE, new_storage, storage_file
    from dfs_rl.sweeping.tuner import check_storage

    config, files = invocation.config, {FILE: _sweep_bytes(file)}
    if config.storage_path is not None:
        storage = new_storage(config.storage_path)
        check_storage(storage)
        files |= storage_file(storage)
    return RunFolder.create(
        config.run_dir,
        kind=KIND,
        name=config.file.stem,
        config=config,
        command=invocation.command,
        fingerprint=fingerprint,
        files=files,
    )
