"""Runs that train gates: creation, training record and budget calibration."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

from dfs_rl.backbones import load_backbone
from dfs_rl.data import Dataset
from dfs_rl.evaluation.budget_conditioning import calibrate_budget_conditioning
from dfs_rl.experiments.command import GateTrainingCommand, SettingsT
from dfs_rl.gating.model import BACKBONE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.storage import load_gate, save_gate
from dfs_rl.utils.config import NonNegativeInt, config_to_dict
from dfs_rl.utils.io import write_json
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder
from dfs_rl.utils.run_records import read_record

N_VALIDATIONS = 20
"""Default number of validations in a run."""
TRAINING_FILE = "training.json"
"""File that marks a training as finished."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Content of ``training.json``.

    Attributes:
        best_on_val: Figures of the selected gate on the val split.
        points_on_val: Computation and accuracy in percent; one point per measured preference for a
            gate for all budgets, a single point for others.
        images_seen: Images that trained the gate and the backbone, repeats counted.
        seconds: Duration of the training in seconds, all resumptions together.
    """

    best_on_val: dict[str, Any]
    points_on_val: tuple[tuple[float, float], ...]
    images_seen: dict[str, NonNegativeInt]
    seconds: float | None = None


class _Schedule(Protocol):
    @property
    def eval_every(self) -> int | None: ...
    @property
    def timesteps(self) -> int: ...


def validation_interval(config: _Schedule) -> int:
    """Return the timesteps between two validations; by default there are ``N_VALIDATIONS``."""
    return config.eval_every or max(1, config.timesteps // N_VALIDATIONS)


def create_run(
    command: GateTrainingCommand[SettingsT],
    config: SettingsT,
    dataset: Dataset,
    *,
    device: str,
    argv: tuple[str, ...],
) -> RunFolder:
    """Validate a configuration and create its run folder.

    Args:
        command: Command to run.
        config: Configuration of the run.
        dataset: Data set of the run.
        device: Device to compute on.
        argv: Command line to store in the run's record.
    """
    return RunFolder.create(
        config.run_dir,
        kind=command.kind,
        name=command.validate(config, dataset, device),
        config=command.with_resolved_defaults(config),
        command=argv,
        fingerprint=dataset.fingerprint,
    )


def train_run(
    command: GateTrainingCommand[SettingsT],
    config: SettingsT,
    dataset: Dataset,
    run: RunFolder,
    *,
    device: str,
) -> TrainingRecord:
    """Train or resume a run's gate, unless it is finished.

    Args:
        command: Command of the run.
        config: Configuration of the run.
        dataset: Data set of the run.
        run: Run folder, locked by the caller.
        device: Device to compute on.

    Returns:
        Record of the training, also stored as ``training.json``.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once everything is saved.
    """
    run.check_data(dataset.fingerprint, dataset.name)
    if (run.path / TRAINING_FILE).exists():
        print_status(f"The training in {run.path} is finished.")
        return read_record(run.path / TRAINING_FILE, TrainingRecord)
    began = time.perf_counter()
    try:
        result = command.train(config, dataset, run, device)
    except KeyboardInterrupt:
        resume_command = f"{command.prog} --resume {run.path}"
        raise KeyboardInterrupt(f"Interrupted and saved; go on with: {resume_command}") from None
    finally:
        seconds = run.add_seconds(time.perf_counter() - began)
    points = _calibrate_budgets(run, dataset, device, budget=config.budget)
    if not points:
        points = ((result.best["computation"], result.best["accuracy"]),)
    record = TrainingRecord(
        best_on_val=dict(result.best),
        points_on_val=points,
        images_seen=dict(result.images_seen),
        seconds=round(seconds, 1),
    )
    write_json(run.path / TRAINING_FILE, config_to_dict(record))
    if "timesteps" in result.best:
        print_status(
            f"Kept the gate of step {result.best['timesteps']:,}: the latest within one standard "
            "error of "
            "the highest mean reward on the val split."
        )
    return record


def _calibrate_budgets(
    run: RunFolder, dataset: Dataset, device: str, *, budget: float | None
) -> tuple[tuple[float, float], ...]:
    """Measure the cost of a gate over its range of budgets, and set it to ``budget`` if given.

    Returns:
        Computation and accuracy in percent at each measured preference; empty for a gate with one
        budget.
    """
    gate = load_gate(run.path / GATE_FOLDER)
    if not isinstance(gate, LearnedGate) or gate.budget_conditioning is None:
        return ()
    gate.to(device)
    print_status("Measuring the cost of the gate at each preference on the val split ...")
    backbone = load_backbone(run.path / BACKBONE_FOLDER).eval().to_inference().to(device)
    gate.budget_conditioning, points = calibrate_budget_conditioning(
        backbone, gate, dataset.val.to(device)
    )
    least, most = gate.budget_conditioning.budget_range
    print_status(f"Its images cost {least:.3g} % to {most:.3g} % on average.")
    if budget is not None:
        if budget < least:  # no error: it would lose the trained gate
            print_status(
                f"A budget of {budget:g} % is below its range; it is set to {least:.3g} %."
            )
        gate.preference = gate.budget_conditioning.preference_for_budget(max(budget, least))
    save_gate(gate, run.path / GATE_FOLDER)
    return points
