"""``compare``: train kinds of gates or take finished runs, compare and recommend one."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from dfs_rl.backbones import load_stored_backbone
from dfs_rl.backbones.storage import load_info, weights_digest
from dfs_rl.costs.machine import measured_costs
from dfs_rl.data import Dataset
from dfs_rl.data.corruptions import corrupted
from dfs_rl.errors import BusyError, CheckpointError, ConfigError, DataError, RunFolderError
from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, EvaluatedRun
from dfs_rl.evaluation.grouping import check_comparable
from dfs_rl.evaluation.summary import load_per_image_results
from dfs_rl.experiments.backbone_resolver import load_data, preview_backbone
from dfs_rl.experiments.benchmark import (
    budgets_of,
    distribute_jobs,
    load_extra_settings,
    plan_jobs,
    run_jobs,
)
from dfs_rl.experiments.budgets import with_percent_budgets
from dfs_rl.experiments.comparison_config import GATE_COMMANDS, CompareConfig, check_suits_runs
from dfs_rl.experiments.config import EvaluateConfig, create_run
from dfs_rl.experiments.evaluation import EvaluationCache, evaluate_run
from dfs_rl.experiments.session import TrainingRecord
from dfs_rl.gating.loading import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER
from dfs_rl.gating.storage import load_gate
from dfs_rl.reporting import alt_text
from dfs_rl.reporting.comparison_figures import comparison_figures
from dfs_rl.reporting.comparison_report import comparison_text, html_report
from dfs_rl.reporting.render import Picture
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict, flat_settings
from dfs_rl.utils.device import check_memory, resolve_device, set_threads
from dfs_rl.utils.io import OnWait, file_lock, write_bytes_atomic, write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.run_folder import TRAINING_FILE, RunFolder, check_trained, program
from dfs_rl.utils.run_records import read_record
from dfs_rl.utils.yaml_core import dump_yaml, read_yaml

GATES_FOLDER = "gates"
EVALUATIONS_FOLDER = "evaluations"
"""Folder of a comparison for evaluations that are missing in the given runs."""
_TRAINING_BYTES = 20_000
"""Approximate size of one training's settings in bytes."""
_EXTRA_SETTINGS_FILE = "{}.yaml"
"""File of a comparison with the further settings of a command's gates."""
_SECTION_FIGURES = {
    "options": ("Bits at each layer", alt_text.of_options),
    "images": ("Cheapest and most expensive images", alt_text.of_images),
}


def run(invocation: Invocation[CompareConfig]) -> None:
    """Compare newly trained gates, or the given runs, and print the tables."""
    flags = [word.partition("=")[0] for word in invocation.command if word.startswith("--")]
    check_suits_runs(invocation.config, [flag[2:].replace("-", "_") for flag in flags])
    set_threads(invocation.config.threads, resumed=invocation.resume is not None)
    folder, comparison = compare(
        invocation.config, resume=invocation.resume, command=invocation.command
    )
    print_result(comparison_text(comparison))
    print_status(f"The report is {folder.path / 'report.html'}.")


def compare(
    config: CompareConfig,
    dataset: Dataset | None = None,
    *,
    resume: RunFolder | None = None,
    command: tuple[str, ...],
) -> tuple[RunFolder, ComparisonOfRuns]:
    """Compare newly trained gates, or the given runs, and write the report."""
    resolve_device(config.device)
    if config.runs:
        return _compare_given(config, dataset or config.dataset, resume, command)
    assert config.dataset is not None
    dataset = dataset or load_data(config, resume)
    dataset = corrupted(dataset, config.corruptions or dataset.corruptions)
    config = replace(config, image_size=dataset.image_size, corruptions=dataset.corruptions)
    if resume is None:
        folder, config = _create_run(config, dataset, command)
    else:
        folder = resume
    kept = {kind: folder.path / _EXTRA_SETTINGS_FILE.format(kind) for kind in GATE_COMMANDS}
    extra_settings = {
        kind: load_extra_settings(path if path.is_file() else None, GATE_COMMANDS[kind])
        for kind, path in kept.items()
    }
    try:
        jobs = plan_jobs(config, extra_settings, folder.path / GATES_FOLDER)
        failed = run_jobs(jobs, dataset)
        places = [job.run_dir for job in jobs if job.run_dir is not None]
        runs = [RunFolder.open(place) for place in places if place not in failed]
        reasons = {place.name: reason for place, reason in failed.items()}
        evaluated, reasons = _evaluate(runs, reasons, dataset, config, lambda run: run.path)
        return folder, _write_report(folder, evaluated, reasons)
    except KeyboardInterrupt:
        raise _interruption(folder) from None


def _interruption(folder: RunFolder | None) -> KeyboardInterrupt:
    """Return the error that says how to go on; without a folder nothing is stored yet."""
    if folder is None:
        return KeyboardInterrupt("Interrupted before anything was stored; run the command again.")
    return KeyboardInterrupt(f"Interrupted and saved; continue with: {folder.resume_command}")


def _create_run(
    config: CompareConfig, dataset: Dataset, command: tuple[str, ...]
) -> tuple[RunFolder, CompareConfig]:
    """Validate the settings and create a folder with them and the further settings of the gates.

    Its settings, with budgets in percent, are returned too.
    """
    files = {"train_agent": config.agent, "train_gumbel": config.gumbel}
    extra_settings = {
        kind: load_extra_settings(path, GATE_COMMANDS[kind]) for kind, path in files.items()
    }
    settings_bytes = float(
        config.seeds * len(config.gates) * len(budgets_of(config)) * _TRAINING_BYTES
    )
    check_memory({f"seeds is {config.seeds}": settings_bytes}, torch.device("cpu"))
    (job, *_) = plan_jobs(config, extra_settings, Path(GATES_FOLDER))
    costs = preview_backbone(job, dataset).backbone.costs
    measured_costs(costs, config.profile)  # refuses a profile that does not apply
    config = with_percent_budgets(config, costs)
    contents = {
        _EXTRA_SETTINGS_FILE.format(kind): dump_yaml(read_yaml(path)).encode()
        for kind, path in files.items()
        if path is not None
    }
    return create_run(config, "compare", command=command, files=contents), config


def _compare_given(
    config: CompareConfig,
    dataset: Dataset | str | None,
    folder: RunFolder | None,
    command: tuple[str, ...],
) -> tuple[RunFolder, ComparisonOfRuns]:
    """Compare finished runs without writing into them."""
    opened = [RunFolder.open(path) for path in config.runs]
    place = (config.run_dir or Path("runs")).resolve()
    for run in opened:
        if run.kind not in GATE_COMMANDS and not (run.path / GATE_FOLDER).is_dir():
            raise DataError(f"{run.path} is a run of kind {run.kind} and has no gate to compare.")
        if run.path.resolve() in place.parents:
            raise ConfigError(
                f"run_dir is {place}, which lies in {run.path}, a run that is compared; nothing is "
                "written there, so choose another folder."
            )

    _check_one_dataset(opened)
    if config.budget_unit != "percent":  # the times of all runs must be the same, see _evaluate
        first = load_stored_backbone(opened[0].path / BACKBONE_FOLDER).backbone
        config = with_percent_budgets(config, first.costs)

    def own() -> RunFolder:
        nonlocal folder
        # Created late, so that invalid input leaves no folder behind.
        folder = folder or create_run(config, "compare", command=command)
        return folder

    def output_folder(run: RunFolder) -> Path:
        return own().path / EVALUATIONS_FOLDER / str(opened.index(run) + 1)

    try:
        evaluated, failed = _evaluate(opened, {}, dataset, config, output_folder)
        return own(), _write_report(own(), evaluated, failed)
    except KeyboardInterrupt:
        raise _interruption(folder) from None


def _check_one_dataset(runs: Sequence[RunFolder]) -> None:
    """Check that runs are of one data set, before any of them is evaluated."""
    infos = {}
    for run in runs:
        with suppress(CheckpointError):  # the failure of one run must not lose the others
            infos[run.path] = load_info(run.path / BACKBONE_FOLDER)
    for path, info in infos.items():
        first, expected = next(iter(infos.items()))
        if info.fingerprint == expected.fingerprint:
            continue
        texts = [repr(one.dataset) for one in (info, expected)]
        if info.dataset == expected.dataset:
            texts = [f"{one.dataset!r} ({one.fingerprint})" for one in (info, expected)]
        raise DataError(
            f"{path} cannot be compared with {first}: its data set is {texts[0]}, not {texts[1]}; "
            "name runs of one data set."
        )


def _evaluate(
    folders: Sequence[RunFolder],
    failed: Mapping[str, str],
    dataset: Dataset | str | None,
    config: CompareConfig,
    output_folder: Callable[[RunFolder], Path],
) -> tuple[list[EvaluatedRun], dict[str, str]]:
    """Evaluate runs at every budget; return the results, and all failures with their reasons.

    ``output_folder`` returns the folder for evaluations that are missing in a run.
    """
    by_folder: dict[Path, list[EvaluatedRun]] = {folder.path: [] for folder in folders}
    cache = EvaluationCache()  # static table search takes most of the time
    all_failed = dict(failed)

    def evaluate(run: RunFolder, on_wait: OnWait) -> None:
        print_status(f"{run.path} ...")

        @contextmanager
        def store() -> Iterator[Path]:
            place = output_folder(run)
            with file_lock(place, on_wait=on_wait):
                yield place

        try:
            check_trained(run.path)
            read_record(run.path / TRAINING_FILE, TrainingRecord)  # needed below, after a while
            by_folder[run.path] = [
                _evaluate_at(run, dataset, budget, effective, config, cache, store)
                for budget, effective in _budgets_of_run(run, config)
            ]
        except BusyError:
            raise
        # The failure of one gate must not lose the others.
        except (CheckpointError, ConfigError, RunFolderError) as error:
            print_status(f"  failed: {error}")
            all_failed[str(run.path)] = str(error)
        check_comparable([run for found in by_folder.values() for run in found])

    distribute_jobs(folders, evaluate)
    evaluated = [run for found in by_folder.values() for run in found]
    if not evaluated:
        path, reason = next(iter(all_failed.items()))
        raise CheckpointError(f"none of the runs can be evaluated; {path}: {reason}")
    return evaluated, all_failed


def _budgets_of_run(
    run: RunFolder, config: CompareConfig
) -> list[tuple[float, float] | tuple[None, None]]:
    """Return the budgets to evaluate a run at, and what they come to for its gate.

    A budget outside the gate's range is clipped to it, rounded so that the printed budget
    reproduces the evaluation.
    """
    conditioning = load_gate(run.path / GATE_FOLDER).budget_conditioning
    budgets = config.budgets if config.runs else budgets_of(config)
    if conditioning is None or not budgets:
        return [(None, None)]
    least, most = conditioning.rounded_range
    return [(budget, min(max(budget, least), most)) for budget in budgets]


def _evaluate_at(
    run: RunFolder,
    dataset: Dataset | str | None,
    budget: float | None,
    effective_budget: float | None,
    config: CompareConfig,
    cache: EvaluationCache,
    store: Callable[[], AbstractContextManager[Path]],
) -> EvaluatedRun:
    if budget is not None:
        print_status(f"  at {budget:g} %")
    settings = {"corruptions": "none", **flat_settings(read_yaml(run.config_path))}
    asked = EvaluateConfig(
        run=run.path,
        split=config.split,
        corruptions=None if config.corruptions == settings["corruptions"] else config.corruptions,
        budget=effective_budget,
        device=config.device,
        search=config.search,
        profile=config.profile,
    )
    evaluation = evaluate_run(
        asked, dataset, progress=lambda text: print_status(f"  {text}"), cache=cache, store=store
    )
    training = read_record(run.path / TRAINING_FILE, TrainingRecord)
    command = [*program("evaluate").split(), str(run.path)]
    if budget is not None:
        settings |= {"budget": budget, "cost_weight": None, "max_accuracy_drop": None}
        command += ["--budget", str(effective_budget)]
    if asked.corruptions is not None:
        command += ["--corruptions", asked.corruptions]
    if config.profile is not None:
        command += ["--profile", str(config.profile)]
    after = evaluation.summary.exits_after  # the actual exits, whatever the configuration
    settings["exits"] = f"after {' '.join(map(str, after))}" if after else "none"
    plots = evaluation.path.parent / run.plots_dir.name
    before = run.path / BEFORE_FOLDER  # the backbone that the gate was given
    reported, selection = load_per_image_results(evaluation.results_path)
    return EvaluatedRun(
        path=str(run.path),
        settings=settings,
        command=shlex.join(run.record().command),
        evaluation=shlex.join(command),
        backbone=weights_digest(before if before.is_dir() else run.path / BACKBONE_FOLDER),
        figure_prefix=f"{plots}/{evaluation.figure_prefix}",
        images_seen=sum(training.images_seen.values()),
        seconds=training.seconds,
        summary=evaluation.summary,
        reported=reported,
        selection=selection,
    )


def _write_report(
    folder: RunFolder, runs: Sequence[EvaluatedRun], failed: Mapping[str, str]
) -> ComparisonOfRuns:
    """Compare evaluated runs, and write the report into a folder."""
    comparison = compare_runs(runs, failed)
    figures = comparison_figures(comparison)
    page = html_report(comparison, figures, _sections(comparison, runs))
    with folder.lock(on_wait=lambda: None):  # other processes write it too
        for pattern in ("options-*.png", "methods.png", "pareto_ms.png"):
            for earlier in folder.path.glob(pattern):
                if earlier.stem not in figures:
                    earlier.unlink()
        for name, picture in figures.items():
            write_bytes_atomic(folder.path / f"{name}.png", picture.png)
        points = comparison.to_frame().to_csv(index=False, lineterminator="\n")
        write_bytes_atomic(folder.path / "points.csv", points.encode())
        write_json(folder.path / "comparison.json", config_to_dict(comparison))
        write_bytes_atomic(folder.path / "report.html", page.encode())
    return comparison


def _sections(
    comparison: ComparisonOfRuns, runs: Sequence[EvaluatedRun]
) -> list[dict[str, object]]:
    """Return each gate's figures, commands and settings."""
    by_point = {(run.path, run.settings.get("budget")): run for run in runs}
    sections: list[dict[str, object]] = []
    for point in comparison.points:
        if point.kind != GATE:
            continue
        of_seeds = [by_point[path, point.budget] for path in point.runs]
        folder = RunFolder.open(Path(point.runs[0]))
        figures = {}
        for name, (title, describe) in _SECTION_FIGURES.items():
            file = Path(f"{of_seeds[0].figure_prefix}{name}.png")
            if file.is_file():
                figures[title] = Picture(file.read_bytes(), describe(of_seeds[0], point.label))
        sections.append(
            {
                "label": point.label,
                "figures": figures,
                "commands": [line for run in of_seeds for line in (run.command, run.evaluation)],
                "settings": folder.config_path.read_text(encoding="utf-8"),
            }
        )
    return sections
