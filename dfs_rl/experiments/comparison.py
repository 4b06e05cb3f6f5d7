"""``compare``: train kinds of gates or take finished runs, compare and recommend one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dfs_rl.data import Dataset
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.evaluation.comparison import compare_runs
from dfs_rl.evaluation.comparison_records import GATE, ComparisonOfRuns, EvaluatedRun
from dfs_rl.evaluation.curves import COMPUTATIONS
from dfs_rl.evaluation.grouping import check_comparable
from dfs_rl.experiments.backbone_resolver import backbone_spec, load_data, preview_backbone
from dfs_rl.experiments.benchmark import (
    BenchmarkSettings,
    distribute_jobs,
    load_extra_settings,
    plan_jobs,
    run_jobs,
)
from dfs_rl.experiments.comparison_config import KIND, PROG, CompareConfig
from dfs_rl.experiments.evaluated_runs import evaluate_at_budgets
from dfs_rl.experiments.evaluation import EvaluationCache
from dfs_rl.experiments.gate_kinds import COMMANDS
from dfs_rl.reporting.comparison_figures import comparison_figures
from dfs_rl.reporting.comparison_report import GateSection, html_report
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.device import check_memory, resolve_device
from dfs_rl.utils.io import OnWait, write_bytes_atomic, write_json
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.yaml_core import dump_yaml, read_yaml

GATES_FOLDER = "gates"
EVALUATIONS_FOLDER = "evaluations"
"""Folder of a comparison for evaluations that are missing in the given runs."""
_TRAINING_BYTES = 20_000
"""Approximate size of one training's settings in bytes."""
_EXTRA_SETTINGS_FILE = "{}.yaml"
"""File of a comparison with the further settings of a command's gates."""
_SECTION_FIGURES = {"options": "Bits at each layer", "images": "Cheapest and most expensive images"}


def _open_run(path: Path) -> RunFolder:
    """Open a run that trained a gate."""
    folder = RunFolder.open(path)
    if folder.kind not in COMMANDS:
        raise DataError(f"{path} is a run of kind {folder.kind} and has no gate to compare.")
    return folder


def _benchmark_settings(
    config: CompareConfig, extra_settings: Mapping[str, Mapping[str, object]]
) -> BenchmarkSettings:
    """Return the settings that all gates of a comparison share."""
    assert config.dataset is not None
    return BenchmarkSettings(
        dataset=config.dataset,
        backbone=config.backbone,
        weights=config.weights,
        image_size=config.image_size,
        flip=config.flip,
        cost_model=config.cost_model,
        budgets=config.budgets or COMPUTATIONS,
        seeds=config.seeds,
        timesteps=config.timesteps,
        device=config.device,
        threads=config.threads,
        extra_settings=extra_settings,
    )


def _create_run(config: CompareConfig, dataset: Dataset, command: tuple[str, ...]) -> RunFolder:
    """Validate the settings and create the folder of a comparison.

    The folder keeps a copy of the further settings of the gates.
    """
    files = {"train_agent": config.agent, "train_gumbel": config.gumbel}
    extra_settings = {
        kind: load_extra_settings(path, COMMANDS[kind]) for kind, path in files.items()
    }
    trainings = config.seeds * len(config.gates) * len(config.budgets or COMPUTATIONS)
    check_memory(
        {f"seeds is {config.seeds}": float(trainings * _TRAINING_BYTES)}, torch.device("cpu")
    )
    (job, *_) = plan_jobs(
        config.gates, _benchmark_settings(config, extra_settings), Path(GATES_FOLDER)
    )
    # Each gate decides separately whether to leave out exits.
    preview_backbone(replace(backbone_spec(job.config, config.device), exits=True), dataset)
    return RunFolder.create(
        config.run_dir,
        kind=KIND,
        name="compare",
        config=config,
        command=command,
        files={
            _EXTRA_SETTINGS_FILE.format(kind): dump_yaml(read_yaml(path)).encode()
            for kind, path in files.items()
            if path is not None
        },
    )


def _train_gates(
    config: CompareConfig, folder: RunFolder, dataset: Dataset
) -> tuple[list[RunFolder], dict[str, str]]:
    """Train or resume the gates of a comparison.

    Returns:
        Folders of the trained gates, and names of failed trainings with their reasons.
    """
    extra_settings = {}
    for kind, command in COMMANDS.items():
        kept = folder.path / _EXTRA_SETTINGS_FILE.format(kind)
        extra_settings[kind] = load_extra_settings(kept if kept.is_file() else None, command)
    jobs = plan_jobs(
        config.gates, _benchmark_settings(config, extra_settings), folder.path / GATES_FOLDER
    )
    failed = run_jobs(jobs, dataset)
    return [RunFolder.open(job.config.run_dir) for job in jobs if job.name not in failed], failed


def _sections(comparison: ComparisonOfRuns, runs: Sequence[EvaluatedRun]) -> list[GateSection]:
    """Return each gate's figures, commands and settings."""
    by_point = {(run.path, run.settings.get("budget")): run for run in runs}
    sections = []
    for point in comparison.points:
        if point.kind != GATE:
            continue
        of_seeds = [by_point[path, point.budget] for path in point.runs]
        folder = RunFolder.open(Path(point.runs[0]))
        prefix = of_seeds[0].figure_prefix
        files = {title: Path(f"{prefix}{name}.png") for name, title in _SECTION_FIGURES.items()}
        sections.append(
            GateSection(
                label=point.label,
                figures={title: f.read_bytes() for title, f in files.items() if f.is_file()},
                commands=[line for run in of_seeds for line in (run.command, run.evaluation)],
                settings=folder.config_path.read_text(encoding="utf-8"),
            )
        )
    return sections


def _evaluate_and_compare(
    folders: Sequence[RunFolder],
    failed: Mapping[str, str],
    dataset: Dataset | str | None,
    config: CompareConfig,
    get_output_folder: Callable[[RunFolder], Path],
) -> tuple[ComparisonOfRuns, list[EvaluatedRun]]:
    """Evaluate and compare runs.

    ``get_output_folder`` returns the folder for evaluations that are missing in a run.

    Raises:
        CheckpointError: If no run can be evaluated.
    """
    by_folder: dict[Path, list[EvaluatedRun]] = {folder.path: [] for folder in folders}
    cache = EvaluationCache()  # static table search takes most of the time
    all_failed = dict(failed)

    def evaluate(folder: RunFolder, on_wait: OnWait) -> None:
        by_folder[folder.path], reasons = evaluate_at_budgets(
            folder, dataset, config, cache, on_wait, lambda: get_output_folder(folder)
        )
        all_failed.update(reasons)
        check_comparable([run for found in by_folder.values() for run in found])

    distribute_jobs(folders, evaluate)
    runs = [run for found in by_folder.values() for run in found]
    if not runs:
        path, reason = next(iter(all_failed.items()))
        raise CheckpointError(f"none of the runs can be evaluated; {path}: {reason}")
    return compare_runs(runs, all_failed), runs


def _write(folder: RunFolder, comparison: ComparisonOfRuns, runs: Sequence[EvaluatedRun]) -> None:
    """Write the report into a folder."""
    figures = comparison_figures(comparison)
    page = html_report(comparison, figures, _sections(comparison, runs))
    with folder.lock(on_wait=lambda: None):  # other processes write it too
        write_bytes_atomic(folder.path / "pareto.png", figures.pareto)
        write_bytes_atomic(folder.path / "difficulty.png", figures.difficulty)
        for stale in folder.path.glob("options-*.png"):
            stale.unlink()
        for number, png in enumerate(figures.bit_mixes.values(), start=1):
            write_bytes_atomic(folder.path / f"options-{number}.png", png)
        points = comparison.to_frame().to_csv(index=False, lineterminator="\n")
        write_bytes_atomic(folder.path / "points.csv", points.encode())
        write_json(folder.path / "comparison.json", config_to_dict(comparison))
        write_bytes_atomic(folder.path / "report.html", page.encode())


def _compare_given(
    config: CompareConfig,
    dataset: Dataset | str | None,
    folder: RunFolder | None,
    command: tuple[str, ...],
) -> tuple[RunFolder, ComparisonOfRuns]:
    """Compare finished runs without writing into them.

    Raises:
        ConfigError: If the comparison's folder is inside one of them.
    """
    opened = [_open_run(path) for path in config.runs]
    place = (config.run_dir or Path("runs")).resolve()
    for path in config.runs:
        if path.resolve() in place.parents:
            raise ConfigError(
                f"run_dir is {place}, which lies in {path}, a run that is compared; nothing is "
                "written there, so choose another folder."
            )

    def own() -> RunFolder:
        nonlocal folder
        # Created late, so that invalid input leaves no folder behind.
        folder = folder or RunFolder.create(
            config.run_dir, kind=KIND, name="compare", config=config, command=command
        )
        return folder

    def get_output_folder(run: RunFolder) -> Path:
        return own().path / EVALUATIONS_FOLDER / str(opened.index(run) + 1)

    comparison, runs = _evaluate_and_compare(opened, {}, dataset, config, get_output_folder)
    _write(own(), comparison, runs)
    return own(), comparison


def compare(
    config: CompareConfig,
    dataset: Dataset | None = None,
    *,
    resume: RunFolder | None = None,
    command: tuple[str, ...],
) -> tuple[RunFolder, ComparisonOfRuns]:
    """Compare newly trained gates, or the given runs, and write the report.

    Args:
        config: Configuration of the comparison.
        dataset: Data set; ``None`` loads that of the configuration.
        resume: Comparison to resume; ``None`` creates one.
        command: Command line to store in a new comparison's record.
    """
    resolve_device(config.device)
    if config.runs:
        return _compare_given(config, dataset or config.dataset, resume, command)
    assert config.dataset is not None
    dataset = dataset or load_data(config, resume)
    config = replace(config, image_size=dataset.image_size)
    folder = resume or _create_run(config, dataset, command)
    try:
        folders, failed = _train_gates(config, folder, dataset)
        comparison, runs = _evaluate_and_compare(
            folders, failed, dataset, config, lambda run: run.path
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Interrupted and saved; continue with: {PROG} --resume {folder.path}"
        ) from None
    _write(folder, comparison, runs)
    return folder, comparison
