"""A whole sweep: search, retraining on fresh seeds, and report."""

import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ray.tune import Result

from dfs_rl.data import Dataset, load_dataset
from dfs_rl.errors import TrainingError
from dfs_rl.evaluation.baselines.methods import uniform_points
from dfs_rl.evaluation.curves import REFERENCE_COMPUTATION, CurvePoint, hypervolume_reference_point
from dfs_rl.experiments.backbone_resolver import load_data, load_or_train_backbone
from dfs_rl.sweeping.commands import budgets_in_percent
from dfs_rl.sweeping.config import SweepConfig
from dfs_rl.sweeping.figures import sweep_figures
from dfs_rl.sweeping.report import results_csv, sweep_page, sweep_text
from dfs_rl.sweeping.results import (
    DEFAULTS,
    RetrainedRecord,
    SweepRecord,
    TrialRecord,
    best_settings,
    best_trials,
    importances,
    retrained_record,
    trial_record,
)
from dfs_rl.sweeping.spec import (
    FIRST_RETRAIN_SEED,
    SweepFile,
    check_with_dataset,
    load_sweep_file,
    parse_overrides,
)
from dfs_rl.sweeping.trial import CANDIDATE, TRACEBACK, TrialPlan, run_name
from dfs_rl.sweeping.tuner import check_resources, check_storage, run_trials
from dfs_rl.training.supernet import uniform_accuracies
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.constants import DIGITS
from dfs_rl.utils.dataset_names import DATASETS
from dfs_rl.utils.device import check_cpus
from dfs_rl.utils.io import replaced_folder, write_bytes_atomic, write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.ray import start_ray
from dfs_rl.utils.run_folder import RunFolder, program
from dfs_rl.utils.trusted_import import trusted_code
from dfs_rl.utils.yaml_core import dump_yaml

_FILE = "sweep.yaml"
_BEST = "best.yaml"
_BEST_RUNS = "best"
_RESULTS = "results.csv"
_REPORT = "report.html"
_PATHS = {"dataset", "backbone", "weights", "init_gate"}  # settings that can name a file or folder


def run(invocation: Invocation[SweepConfig]) -> None:
    """Search, retrain the best trials, and write the report."""
    config, folder = invocation.config, invocation.resume
    if folder is None:
        file = resolved(config)
        if config.cpus is not None:  # a sweep may resume with fewer cores
            check_cpus("cpus", config.cpus)
    else:
        moved = {"settings.dataset": _absolute_path(config.dataset)} if config.dataset else {}
        file = load_sweep_file(folder.path / _FILE, moved)
    base = file.config({})
    if file.trains_gates:
        dataset = load_data(base)
    else:
        dataset = load_dataset(base.dataset, image_size=base.image_size, flip=base.flip)
    if folder is None:
        check_with_dataset(file, dataset, config.file)
        file = replace(file, objective=budgets_in_percent(file.objective, base, dataset))
    else:
        folder.check_data(dataset.fingerprint, dataset.name)
    reference_point = reference_point_of(file, dataset)
    with start_ray(address=config.address, cpus=config.cpus, store_bytes=dataset.memory_bytes):
        check_resources(file.resources, shares_storage=config.storage_path is not None)
        if folder is None:
            folder = _create_run(file, dataset, invocation)
        with folder.lock():
            try:
                _run_sweep(file, dataset, reference_point, folder)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"Interrupted; continue with: {folder.resume_command}"
                ) from None


def resolved(config: SweepConfig) -> SweepFile:
    """Return the sweep of flags and file, with absolute paths, since workers have other folders."""
    given = {f"settings.{name}": value for name, value in parse_overrides(config.set).items()}
    flags = {
        "settings.dataset": config.dataset,
        "trials": config.trials,
        "retrain.seeds": config.retrain_seeds,
    }
    given |= {name: value for name, value in flags.items() if value is not None}
    file = load_sweep_file(config.file, given)
    settings = {
        name: _absolute_path(value) if name in _PATHS else value
        for name, value in file.settings.items()
    }
    latency = settings.get("latency")
    if isinstance(latency, dict) and "profile" in latency:
        settings["latency"] = {**latency, "profile": _absolute_path(latency["profile"])}
    return replace(file, settings=settings)


def _absolute_path(value: object) -> object:
    """Return the absolute path if ``value`` names a file or folder, else ``value`` unchanged.

    Names of data sets take precedence over a path.
    """
    if not isinstance(value, str) or value in (DIGITS, *DATASETS) or not Path(value).exists():
        return value
    return str(Path(value).resolve())


def reference_point_of(file: SweepFile, dataset: Dataset) -> CurvePoint:
    """Return the bound of the hypervolume.

    A value in the file takes precedence. For gates, the bound comes from the backbone's uniform
    settings on val, as in a comparison, also of a stream; for backbones, its accuracy is that of
    chance.
    """
    if file.objective.reference_point is not None:
        return CurvePoint(*file.objective.reference_point)
    if not file.trains_gates:
        return CurvePoint(REFERENCE_COMPUTATION, 100.0 / dataset.n_classes)
    stored = load_or_train_backbone(file.config({}), dataset)
    accuracies = uniform_accuracies(stored.backbone, dataset.val)  # stored are clean ones
    running = uniform_points(stored.backbone, accuracies)
    return hypervolume_reference_point(running, [], gates=running)


def _create_run(
    file: SweepFile, dataset: Dataset, invocation: Invocation[SweepConfig]
) -> RunFolder:
    """Create the run folder of a sweep, after a check that its trials can be stored."""
    config = invocation.config
    if config.storage_path is not None:  # several sweeps can share it
        storage = config.storage_path
        if "://" not in storage:
            storage = str(Path(storage).resolve())
        storage = f"{storage}/sweep-{secrets.token_hex(4)}"
        check_storage(storage)
        config = replace(config, storage_path=storage)
    return RunFolder.create(
        config.run_dir,
        kind=config.KIND,
        name=config.file.stem,
        config=config,
        command=invocation.command,
        fingerprint=dataset.fingerprint,
        files={_FILE: sweep_yaml(file).encode()},
    )


def sweep_yaml(file: SweepFile) -> str:
    """Return the sweep as YAML for its run folder, so that resuming needs no other file."""
    plain = config_to_dict(file)
    plain["search"] = {
        name: {kind: values for kind, values in domain.items() if values is not None}
        for name, domain in plain["search"].items()
    }
    return dump_yaml(plain)


def _run_sweep(
    file: SweepFile, shared: Dataset, reference_point: CurvePoint, folder: RunFolder
) -> None:
    start = time.perf_counter()
    storage = folder.config(SweepConfig).storage_path or str((folder.path / "tune").resolve())
    log, first = folder.path / "ray.log", file.base["seed"]
    plan = TrialPlan(
        file=file,
        reference_point=reference_point,
        seeds=tuple(range(first, first + file.seeds)),
        trusted=trusted_code(),
    )
    results = run_trials(plan, shared, storage, log=log)
    trials = tuple(
        trial_record(f"{number:03d}", result, file)
        for number, result in enumerate(results, start=1)
    )
    best = best_trials(trials, file)
    chosen = [trial for name in best[: file.retrain.best] for trial in trials if trial.name == name]
    _collect_results(results, trials, chosen, folder)
    if chosen:
        text = dump_yaml(best_settings(file, chosen[0].settings))
        write_bytes_atomic(folder.path / _BEST, text.encode())
    retrained: tuple[RetrainedRecord, ...] = ()
    if chosen and file.retrain.seeds:
        candidates = {trial.name: trial.settings for trial in chosen} | {DEFAULTS: file.defaults}
        fresh = first + FIRST_RETRAIN_SEED
        seeds = tuple(range(fresh, fresh + file.retrain.seeds))
        print_status(f"Training {len(candidates)} settings on {len(seeds)} fresh seeds ...")
        again = replace(plan, candidates=tuple(candidates.values()), seeds=seeds)
        results = run_trials(again, shared, storage, log=log)
        values = {trial.name: trial.values for trial in chosen}
        retrained = tuple(
            retrained_record(
                name,
                settings,
                values.get(name, {}),
                [r for r in results if (r.config or {})[CANDIDATE] == number],
                file,
            )
            for number, (name, settings) in enumerate(candidates.items())
        )
    record = SweepRecord(
        title=f"{folder.path.name}: {file.command} on {shared.name}",
        about=_about(file, shared, reference_point),
        file=file,
        trials=trials,
        best=best,
        retrained=retrained,
        importance=importances(trials, file),
        reference_point=reference_point,
        commands=_commands(file, folder, chosen),
        seconds=folder.add_seconds(time.perf_counter() - start),
    )
    _write(folder, record)
    if not best:
        raise TrainingError(
            f"none of the {len(trials)} trials has a result; the reasons are in "
            f"{folder.path / _RESULTS}."
        )


def _collect_results(
    results: Sequence[Result],
    trials: Sequence[TrialRecord],
    chosen: Sequence[TrialRecord],
    folder: RunFolder,
) -> None:
    """Copy runs of the best trials, TensorBoard events and tracebacks from Tune's storage."""
    for trial, result in zip(trials, results, strict=True):
        metrics = result.metrics or {}
        if metrics.get(TRACEBACK):
            path = folder.path / "failures" / f"{trial.name}.txt"
            write_bytes_atomic(path, metrics[TRACEBACK].encode())
        if result.checkpoint is None:
            continue
        with result.checkpoint.as_directory() as stored:
            if trial in chosen:
                _copy(Path(stored), folder.path / _BEST_RUNS / trial.name)
            for events in Path(stored).glob("*/tensorboard"):
                _copy(events, folder.tensorboard_dir / trial.name / events.parent.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder atomically; an existing target stays, because users may have added files."""
    if not target.exists():
        with replaced_folder(target) as new:
            shutil.copytree(source, new, dirs_exist_ok=True)


def _about(file: SweepFile, shared: Dataset, reference_point: CurvePoint) -> str:
    about = (
        f"{len(shared.val):,} val images; searcher {file.searcher}, scheduler "
        f"{file.scheduler.name}, seeds per trial {file.seeds}. "
        f"{file.objective.description(reference_point, file.cost_model)}"
    )
    if file.scheduler.is_population:
        about += " Retrained with the last settings of the schedule, held constant."
    return about


def _commands(file: SweepFile, folder: RunFolder, chosen: Sequence[TrialRecord]) -> tuple[str, ...]:
    """Return command lines that train and evaluate the best configuration and repeat the sweep."""
    lines = []
    if chosen:
        lines.append([*program(file.command).split(), "--config", str(folder.path / _BEST)])
        run = folder.path / _BEST_RUNS / chosen[0].name / run_name(file.base["seed"])
        if file.trains_gates:
            lines.append(["python", "-m", "dfs_rl.evaluate", str(run)])
    return tuple(shlex.join(line) for line in (*lines, folder.record().command))


def _write(folder: RunFolder, record: SweepRecord) -> None:
    write_bytes_atomic(folder.path / _RESULTS, results_csv(record).encode())
    write_json(folder.path / "sweep.json", config_to_dict(record))
    page = sweep_page(record, sweep_figures(record), sweep_yaml(record.file))
    write_bytes_atomic(folder.path / _REPORT, page.encode())
    print_result(sweep_text(record))
    print_status(f"The report is {folder.path / _REPORT}.")
