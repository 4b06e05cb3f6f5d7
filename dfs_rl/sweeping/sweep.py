"""A whole sweep: search, retraining on fresh seeds, and report."""

import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray.tune import Result

from dfs_rl.data import Dataset
from dfs_rl.errors import TrainingError
from dfs_rl.evaluation.baselines.uniform import uniform_points
from dfs_rl.evaluation.curves import REFERENCE_COMPUTATION, CurvePoint, hypervolume_reference_point
from dfs_rl.experiments.backbone_resolver import load_or_train_backbone
from dfs_rl.experiments.gate_run import backbone_spec
from dfs_rl.sweeping.commands import command_of
from dfs_rl.sweeping.records import DEFAULTS, RetrainedRecord, SweepRecord, TrialRecord
from dfs_rl.sweeping.report.figures import sweep_figures
from dfs_rl.sweeping.report.html import sweep_report
from dfs_rl.sweeping.report.text import sweep_csv, sweep_text
from dfs_rl.sweeping.results import (
    best_settings,
    best_trials,
    importances,
    retrained_records,
    trial_records,
)
from dfs_rl.sweeping.spec import FIRST_RETRAIN_SEED, SweepFile
from dfs_rl.sweeping.tensorboard_sync import TensorBoardSync, sync_events
from dfs_rl.sweeping.trial import TRACEBACK, TrialPlan, run_name
from dfs_rl.sweeping.tuner import absolute, retrain_best, run_search
from dfs_rl.utils.config import config_to_dict, dump_yaml
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.io import json_bytes, write_bytes_atomic, write_json
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record
from dfs_rl.utils.trusted_import import trusted_code

FILE = "sweep.yaml"
"""Name of the resolved sweep file in the run folder."""
BEST = "best.yaml"
BEST_RUNS = "best"
RESULTS = "results.csv"
FAILURES = "failures"
_TUNE = "tune"
_STORAGE = "storage.json"
_PERCENT = 100.0


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Contents of ``storage.json``: the storage of a sweep's trials."""

    trials: str


def reference_point_of(file: SweepFile, dataset: Dataset) -> CurvePoint:
    """Return the bound of the hypervolume.

    A value in the file takes precedence. For gates, the bound comes from the backbone's uniform
    settings on val, as in a comparison; for backbones, its accuracy is that of chance.
    """
    if file.objective.reference_point is not None:
        return CurvePoint(*file.objective.reference_point)
    if not command_of(file.command).trains_gates:
        return CurvePoint(REFERENCE_COMPUTATION, _PERCENT / dataset.n_classes)
    config = file.config({})
    choice = backbone_spec(config, str(resolve_device(config.device)))
    stored = load_or_train_backbone(choice, dataset)
    running = uniform_points(stored.backbone, stored.info.accuracy)
    return hypervolume_reference_point(running, [], gates=running)


def storage_of(folder: RunFolder) -> str:
    """Return the storage of a sweep's trials.

    It is the recorded one, or a sub-folder of the run folder.
    """
    path = folder.path / _STORAGE
    if not path.is_file():
        return absolute(folder.path / _TUNE)
    return read_record(path, Storage).trials


def new_storage(storage_path: str) -> str:
    """Return a unique storage for a new sweep's trials under the given folder or URI."""
    return f"{absolute(storage_path)}/sweep-{secrets.token_hex(4)}"


def storage_file(storage: str) -> dict[str, bytes]:
    """Return the file that records the storage of a sweep's trials, by its name."""
    return {_STORAGE: json_bytes(config_to_dict(Storage(trials=storage)))}


def run_sweep(
    file: SweepFile,
    shared: Dataset,
    reference_point: CurvePoint,
    folder: RunFolder,
    *,
    storage: str,
) -> None:
    """Run or resume a sweep and write all results into its folder.

    Args:
        file: The sweep.
        shared: Data set of the sweep.
        reference_point: Bound of the hypervolume.
        folder: Run folder of the sweep.
        storage: Storage of the trials, from ``storage_of``.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        TrainingError: If no trial has finished.
    """
    start = time.perf_counter()
    log = folder.path / "ray.log"
    first = file.base["seed"]
    plan = TrialPlan(
        file=file,
        reference_point=reference_point,
        seeds=tuple(range(first, first + file.seeds)),
        trusted=trusted_code(),
    )
    tensorboard_sync = TensorBoardSync(folder.tensorboard_dir)
    results = run_search(plan, shared, storage, log=log, tensorboard_sync=tensorboard_sync)
    trials = trial_records(results, file)
    best = best_trials(trials, file)
    chosen = [trial for name in best[: file.retrain.best] for trial in trials if trial.name == name]
    _collect_results(results, trials, chosen, folder)
    retrained: tuple[RetrainedRecord, ...] = ()
    if chosen:
        text = dump_yaml(best_settings(file, chosen[0].settings))
        write_bytes_atomic(folder.path / BEST, text.encode())
    if chosen and file.retrain.seeds:
        candidates = {trial.name: trial.settings for trial in chosen} | {DEFAULTS: file.defaults}
        again = replace(plan, candidates=tuple(candidates.values()))
        first_retrain_seed = first + FIRST_RETRAIN_SEED
        seeds = tuple(range(first_retrain_seed, first_retrain_seed + file.retrain.seeds))
        print_status(f"Training {len(candidates)} settings again on {len(seeds)} fresh seeds ...")
        retrained = retrained_records(
            retrain_best(again, shared, storage, log=log, seeds=seeds), candidates, trials, file
        )
    _write(
        folder,
        SweepRecord(
            title=f"{folder.path.name}: {file.command} on {shared.name}",
            about=_about(file, shared),
            objective=file.objective.record(reference_point),
            scales={name: domain.scale for name, domain in file.search.items()},
            trials=trials,
            best=best,
            retrained=retrained,
            importance=importances(trials, file),
            reference_point=reference_point,
            commands=_commands(file, folder, chosen),
            settings=(folder.path / FILE).read_text(encoding="utf-8"),
            seconds=folder.add_seconds(time.perf_counter() - start),
        ),
    )
    if not best:
        raise TrainingError(
            f"none of the {len(trials)} trials has a result; the reasons are in "
            f"{folder.path / RESULTS}."
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
            path = folder.path / FAILURES / f"{trial.name}.txt"
            path.parent.mkdir(exist_ok=True)
            write_bytes_atomic(path, metrics[TRACEBACK].encode())
        checkpoint = result.checkpoint
        if checkpoint is None:
            continue
        with checkpoint.as_directory() as stored:
            if trial in chosen:
                _copy(Path(stored), folder.path / BEST_RUNS / trial.name)
            sync_events(Path(stored), folder.tensorboard_dir / trial.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder atomically.

    An existing target stays, because files may have been added to it.
    """
    if target.exists():
        return
    half = target.with_name(f".{target.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    half.rename(target)


def _about(file: SweepFile, shared: Dataset) -> str:
    n = len(shared.val)
    seeds = "one seed" if file.seeds == 1 else f"{file.seeds} seeds"
    said = f"{n:,} val images; searcher {file.searcher}, scheduler {file.scheduler.name}, {seeds} a trial"
    if file.scheduler.is_population:
        said += (
            "; trained again with the settings it ended with, not with the schedule that led there"
        )
    return f"{said}."


def _commands(file: SweepFile, folder: RunFolder, chosen: Sequence[TrialRecord]) -> tuple[str, ...]:
    """Return command lines that train and evaluate the best configuration and repeat the sweep."""
    lines = []
    prog = command_of(file.command).prog.split()
    if chosen:
        lines.append(shlex.join([*prog, "--config", str(folder.path / BEST)]))
        run = folder.path / BEST_RUNS / chosen[0].name / run_name(file.base["seed"])
        if command_of(file.command).trains_gates:
            lines.append(shlex.join(["python", "-m", "dfs_rl.evaluate", str(run)]))
    lines.append(shlex.join(folder.record().command))
    return tuple(lines)


def _write(folder: RunFolder, record: SweepRecord) -> None:
    """Write the report into the folder and the summary to the screen."""
    write_bytes_atomic(folder.path / RESULTS, sweep_csv(record).encode())
    write_json(folder.path / "sweep.json", config_to_dict(record))
    page = sweep_report(record, sweep_figures(record))
    write_bytes_atomic(folder.path / "report.html", page.encode())
    sys.stdout.write(sweep_text(record))
    sys.stdout.flush()
    print_status(f"The report is {folder.path / 'report.html'}.")
