"""Evaluation of compared runs at every budget."""

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs_rl.backbones.storage import weights_digest
from dfs_rl.data import Dataset
from dfs_rl.errors import BusyError, CheckpointError, ConfigError, RunFolderError
from dfs_rl.evaluation.comparison_records import EvaluatedRun
from dfs_rl.evaluation.curves import COMPUTATIONS
from dfs_rl.evaluation.per_image_results import load_per_image_results
from dfs_rl.experiments.comparison_config import CompareConfig
from dfs_rl.experiments.evaluation import EvaluationCache, evaluate_run, figure_prefix
from dfs_rl.experiments.gate_kinds import COMMANDS
from dfs_rl.experiments.gate_run import TRAINING_FILE, TrainingRecord
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.model import BACKBONE_FOLDER, BEFORE_FOLDER, GATE_FOLDER
from dfs_rl.gating.storage import load_gate
from dfs_rl.utils.config import flat_settings
from dfs_rl.utils.io import OnWait, file_lock
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record
from dfs_rl.utils.yaml_core import read_yaml


def evaluate_at_budgets(
    folder: RunFolder,
    dataset: Dataset | str | None,
    config: CompareConfig,
    cache: EvaluationCache,
    on_wait: OnWait,
    get_output_folder: Callable[[], Path],
) -> tuple[list[EvaluatedRun], dict[str, str]]:
    """Evaluate a run at every budget that it supports, or read its stored evaluations.

    Args:
        folder: Run folder.
        dataset: Data set of the run, or its location.
        config: Configuration of the comparison, with budgets, split and search limits.
        cache: Cache shared with evaluations of other runs.
        on_wait: Callback before waiting for a run that another process has locked; ``None`` raises
            ``BusyError`` instead.
        get_output_folder: Function that returns the folder for evaluations missing in the run.

    Returns:
        Evaluated runs, and failures with their reasons.

    Raises:
        BusyError: If another process has locked the run and ``on_wait`` is ``None``.
    """
    print_status(f"{folder.path} ...")
    found: list[EvaluatedRun] = []
    if not (folder.path / TRAINING_FILE).is_file():
        resume_command = f"{COMMANDS[folder.kind].prog} --resume {folder.path}"
        return found, {
            str(folder.path): f"its training is not finished; continue with {resume_command}."
        }
    budgets = config.budgets or (() if config.runs else COMPUTATIONS)
    try:
        training = read_record(folder.path / TRAINING_FILE, TrainingRecord)
        budget_conditioning = load_gate(folder.path / GATE_FOLDER).budget_conditioning
        found += [
            _evaluate_at(
                folder,
                training,
                dataset,
                budget,
                budget_conditioning,
                config,
                cache,
                on_wait,
                get_output_folder,
            )
            for budget in (budgets if budget_conditioning is not None and budgets else (None,))
        ]
    except BusyError:
        raise
    # The failure of one gate must not lose the others.
    except (CheckpointError, ConfigError, RunFolderError) as error:
        print_status(f"  failed: {error}")
        return [], {str(folder.path): str(error)}
    return found, {}


def _evaluate_at(
    folder: RunFolder,
    training: TrainingRecord,
    dataset: Dataset | str | None,
    budget: float | None,
    budget_conditioning: BudgetConditioning | None,
    config: CompareConfig,
    cache: EvaluationCache,
    on_wait: OnWait,
    get_output_folder: Callable[[], Path],
) -> EvaluatedRun:

    effective_budget = budget
    if budget is not None and budget_conditioning is not None:
        print_status(f"  at {budget:g} %")
        # A budget outside the gate's range is clipped to it. Bounds are rounded up to four
        # decimals, so that the printed budget reproduces the evaluation.
        least, most = (
            math.ceil(1e4 * computation) / 1e4 for computation in budget_conditioning.budget_range
        )
        effective_budget = min(max(budget, least), most)

    @contextmanager
    def store() -> Iterator[Path]:
        place = get_output_folder()
        with file_lock(place, on_wait=on_wait):
            yield place

    evaluation = evaluate_run(
        folder,
        dataset=dataset,
        split=config.split,
        budget=effective_budget,
        device=config.device,
        search=config.search,
        progress=lambda text: print_status(f"  {text}"),
        cache=cache,
        store=store,
    )
    settings = flat_settings(read_yaml(folder.config_path))
    if budget is not None:
        settings |= {"budget": budget, "cost_weight": None}
    after = evaluation.summary.exits_after  # the actual exits, whatever the configuration
    settings["exits"] = f"after {' '.join(map(str, after))}" if after else "none"
    plots = evaluation.path.parent / folder.plots_dir.name
    return EvaluatedRun(
        path=str(folder.path),
        settings=settings,
        command=shlex.join(folder.record().command),
        evaluation=_evaluation_command(folder, effective_budget),
        backbone=_backbone_digest(folder),
        figure_prefix=f"{plots}/{figure_prefix(config.split, effective_budget)}",
        images_seen=sum(training.images_seen.values()),
        seconds=training.seconds,
        summary=evaluation.summary,
        results=load_per_image_results(evaluation.results_path),
    )


def _evaluation_command(folder: RunFolder, budget: float | None) -> str:
    """Return the command that evaluates a run at a budget."""
    words = ["python", "-m", "dfs_rl.evaluate", str(folder.path)]
    return shlex.join([*words, *([] if budget is None else ["--budget", f"{budget:.10g}"])])


def _backbone_digest(folder: RunFolder) -> str:
    """Return a digest of the backbone that the run's gate was given, before any co-training."""
    before = folder.path / BEFORE_FOLDER
    return weights_digest(before if before.is_dir() else folder.path / BACKBONE_FOLDER)
