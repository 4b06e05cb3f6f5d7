"""Session of one training in a run folder: resume, metrics, validation, checkpoints, Ctrl-C.

``docs/how-to/tensorboard.md`` explains the tags of TensorBoard.
"""

import bisect
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
from stable_baselines3.common.logger import HParam, Image
from torch import Tensor

from dfs_rl.agents.logging import TensorBoard
from dfs_rl.agents.validation import Validator
from dfs_rl.backbones import Backbone, GatedBackbone, StoredBackbone, save_backbone
from dfs_rl.costs import CostTable
from dfs_rl.errors import CheckpointError
from dfs_rl.evaluation.evaluator import evaluate_static_table
from dfs_rl.evaluation.records import GateRecords
from dfs_rl.experiments.config import GateTrainingConfig
from dfs_rl.experiments.search_config import TrainCascadeConfig
from dfs_rl.gating.budget_conditioning import BudgetConditioning
from dfs_rl.gating.loading import BACKBONE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import StoredGate, load_gate, save_gate
from dfs_rl.reporting import style
from dfs_rl.reporting.figures import options_plot
from dfs_rl.reporting.images_plot import EXAMPLES, images_plot
from dfs_rl.utils.checkpoint import module_tensors, restore_module
from dfs_rl.utils.config import NonNegativeInt, flat_settings
from dfs_rl.utils.run_folder import LAST_CHECKPOINT, RunFolder
from dfs_rl.utils.run_records import parse_record
from dfs_rl.utils.signals import StopRequest, stop_on_interrupt
from dfs_rl.utils.yaml_core import read_yaml

StateT = TypeVar("StateT")

_FIGURES = ("accuracy", "computation", "reward", "patterns")
_PLACES = ("run_dir", "device", "threads")
"""Settings that say where a run is, and are no hyperparameters."""
_ROUNDING = 1e-6
"""Rounding tolerance of a preference."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Result of a training, the content of ``training.json``.

    The points are computation and accuracy in percent, at each measured preference of a gate for
    all budgets.
    """

    best_on_val: dict[str, Any]  # figures of the selected gate
    points_on_val: tuple[tuple[float, float], ...]
    images_seen: dict[str, NonNegativeInt]  # by the gate and the backbone, repeats counted
    seconds: float | None = None  # all resumptions together


def training_record(
    best: Mapping[str, Any], *, gate_images: int, backbone_images: int = 0
) -> TrainingRecord:
    """Return the record of a training with these figures of its best gate."""
    return TrainingRecord(
        best_on_val=dict(best),
        points_on_val=((best["computation"], best["accuracy"]),),
        images_seen={"gate": gate_images, "backbone": backbone_images},
    )


def shipped_preference(
    config: GateTrainingConfig | TrainCascadeConfig, measured: BudgetConditioning, preference: float
) -> float:
    """Return the preference that a gate is set to after its training.

    It belongs to the budget or the bound on the loss of accuracy, or the nearest that the gate can
    hold; without either, it is ``preference``.
    """
    if config.budget is not None:
        return measured.preference_for_budget(max(config.budget, measured.budget_range[0]))
    if config.max_accuracy_drop is not None:
        drop = max(config.max_accuracy_drop, measured.smallest_accuracy_drop)
        return measured.preference_for_accuracy_drop(drop)
    return preference


def shipped_point(
    config: GateTrainingConfig,
    points: Sequence[tuple[float, float]],
    *,
    preference: float,
    full_precision_accuracy: float,
) -> dict[str, float]:
    """Return computation and accuracy of the point that would ship, in percent like ``points``.

    These are from the lowest preference to the highest. ``preference`` is that of the gate without
    a budget.
    """
    computations, accuracies = zip(*points, strict=True)
    measured = BudgetConditioning(
        computations=computations,
        accuracies=accuracies,
        full_precision_accuracy=full_precision_accuracy,
    )
    at = shipped_preference(config, measured, preference)
    accuracy = float(np.interp(at, measured.preferences, accuracies))
    return {"computation": measured.computation_at(at), "accuracy": accuracy}


class RunSession(Generic[StateT]):
    """One training in a run folder, from its start or from its last checkpoint.

    The caller locks the run folder. The metrics are truncated to the records that the checkpoint
    counts.

    Args:
        run: Run folder.
        state_type: Type of the state in a checkpoint, with the field ``metrics``; ``None`` for a
            training that starts over each time and stores its own results.
        report: Receives the record of each validation.

    Attributes:
        checkpoint: Checkpoint that the training resumes from, ``None`` at its start.
        state: State in the checkpoint.
    """

    writer: TensorBoard  # set by open_board
    validator: Validator | None = None  # set by validate_on
    _config: GateTrainingConfig | None = None

    def __init__(
        self,
        run: RunFolder,
        state_type: type[StateT] | None,
        *,
        report: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.run = run
        self.checkpoint = None
        self.state: StateT | None = None
        self.keep: Callable[[Any], None] = lambda gate: save_gate(gate, run.path / GATE_FOLDER)
        self._report = report
        self._best: dict[str, Tensor] = {}
        self._class_names: Sequence[str] = ()
        self._full: tuple[GatedBackbone, float] | None = None  # accuracy at the largest bits
        if state_type is not None and run.has_checkpoint(LAST_CHECKPOINT):
            self.checkpoint = run.load_checkpoint(LAST_CHECKPOINT)
            source = f"the checkpoint in {run.checkpoint_dir}"
            self.state = parse_record(self.checkpoint.state, state_type, source=source)
        self._n_records = cast("int", self.checkpoint.state["metrics"]) if self.checkpoint else 0
        run.truncate_metrics(self._n_records)

    def log(self, record: Mapping[str, object]) -> None:
        """Append one record to the metrics."""
        self.run.log(record)
        self._n_records += 1

    def open_board(self, *, purge_step: int | None) -> TensorBoard:
        """Open TensorBoard; earlier events from ``purge_step`` on are removed."""
        self.writer = TensorBoard(self.run, purge_step=purge_step)
        return self.writer

    def keep_best(self, stored: StoredBackbone, gate: LearnedGate, *, cotrained: bool) -> None:
        """Keep the best gate in run folder and checkpoints, and restore that of the checkpoint.

        ``gate`` is of the trained kind and stays unchanged. A co-trained backbone is kept too.
        """

        def save(best: LearnedGate, backbone: Backbone) -> None:
            save_gate(best, self.run.path / GATE_FOLDER)
            if cotrained:
                save_backbone(backbone, stored.info, self.run.path / BACKBONE_FOLDER)

        def keep(best: LearnedGate) -> None:
            tensors = module_tensors(best, "best_gate")
            if cotrained:
                tensors |= module_tensors(stored.backbone, "best_backbone")
            self._best = {name: value.clone() for name, value in tensors.items()}
            save(best, stored.backbone)

        self.keep = keep
        if self.checkpoint is None:
            return
        tensors = self.checkpoint.tensors
        self._best = {name: value for name, value in tensors.items() if name.startswith("best_")}
        best, backbone = copy.deepcopy((gate, stored.backbone))
        try:
            restore_module(best, tensors, "best_gate")
            if cotrained:
                restore_module(backbone, tensors, "best_backbone")
        except RuntimeError as error:
            raise CheckpointError("the checkpoint's best gate does not fit this run.") from error
        save(best, backbone)

    def validate_on(
        self,
        validator: Validator,
        class_names: Sequence[str],
        config: GateTrainingConfig | None = None,
    ) -> Validator:
        """Use a validator, with its state in the checkpoint.

        With the configuration, a gate for all budgets is reported at the point that would ship.
        """
        self.validator, self._class_names, self._config = validator, class_names, config
        # A training that was copied with another reward selects its best gate anew.
        if self.checkpoint is not None and self.checkpoint.state["validation"] is not None:
            state = cast("dict[str, Any]", self.checkpoint.state["validation"])
            validator.restore(state, self.checkpoint.tensors)
        return validator

    def validate(self, gate: StoredGate, timesteps: int) -> None:
        """Validate ``gate``, log its metrics and keep it if it is the best."""
        assert self.validator is not None
        record, is_best = self.validator.validate(gate, timesteps)
        if self._config is not None and isinstance(gate, LearnedGate) and len(record["points"]) > 1:
            record |= shipped_point(
                self._config,
                record["points"],
                preference=gate.preference,
                full_precision_accuracy=self._full_precision_accuracy(),
            )
        self.log(record)
        records, costs = self.validator.records, self.validator.backbone().costs
        assert records is not None, "validate sets it"
        images = self.validator.images.images
        scalars = validation_scalars(record, records, costs)
        pictures = validation_pictures(records, images, costs, self._class_names)
        self.writer.scalars(scalars | pictures, timesteps)
        if is_best:
            self.keep(gate)
        self._report(record)

    def _full_precision_accuracy(self) -> float:
        """Return the accuracy at the largest bits in percent; 0 where it decides nothing."""
        assert self.validator is not None
        assert self._config is not None
        if self._config.max_accuracy_drop is None:
            return 0.0
        backbone = self.validator.backbone()
        if self._full is None or self._full[0] is not backbone:  # co-training changes it
            largest = (backbone.options.full,) * backbone.costs.n_layers
            records = evaluate_static_table(backbone, self.validator.images, largest, name="full")
            self._full = backbone, records.accuracy
        return self._full[1]

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """Save a checkpoint of the learner's tensors and state, and of the session itself."""
        tensors, state = {**tensors, **self._best}, {**state, "metrics": self._n_records}
        if self.validator is not None:
            tensors |= self.validator.tensors()
            state["validation"] = self.validator.state
        self.run.save_checkpoint(LAST_CHECKPOINT, tensors, state)

    @contextmanager
    def running(self, stop: StopRequest | None = None) -> Iterator[StopRequest]:
        """Yield a stop request, set by Ctrl-C unless given; close the board at the end."""
        try:
            with stop_on_interrupt() if stop is None else nullcontext(stop) as request:
                yield request
        finally:
            self.writer.close()

    def result(self, *, gate_images: int, backbone_images: int = 0) -> TrainingRecord:
        """Return the record of the training after the last validation."""
        assert self.validator is not None
        assert self.validator.best is not None
        return training_record(
            self.validator.best, gate_images=gate_images, backbone_images=backbone_images
        )


def validation_scalars(
    record: Mapping[str, Any], records: GateRecords, costs: CostTable
) -> dict[str, Any]:
    """Return the scalars of a validation, by tag.

    The bits of a layer are the mean over images and passes; a skipped layer, and one behind the
    exit of an image, has 0.
    """
    shares = np.asarray(record["histogram"])[:, : len(costs.options)]
    bits = shares @ np.asarray(list(costs.options), dtype=np.float64)
    scalars = {f"val/{name}": record[name] for name in _FIGURES}
    digits = len(str(len(bits)))  # TensorBoard sorts tags as text
    scalars |= {f"bits/layer_{i + 1:0{digits}d}": float(mean) for i, mean in enumerate(bits)}
    if records.earlier is not None:
        scalars["passes/mean"] = records.mean_passes
        percent = 100.0 * records.earlier.ran.double().mean(dim=0)
        scalars |= {f"passes/pass_{i + 2}": float(share) for i, share in enumerate(percent)}
    return scalars


def validation_pictures(
    records: GateRecords, images: Tensor, costs: CostTable, class_names: Sequence[str]
) -> dict[str, Image]:
    """Return the pictures of a validation, by tag: shares of the options, and the first images.

    The images are always the same ones, so that their bits can be followed. A gate for all budgets
    runs each of them at its own preference.
    """
    passes = records.pass_histograms(costs.n_actions).numpy()
    rows = {"Samples of the val split": range(min(EXAMPLES, len(images)))}
    samples = style.to_array(images_plot(rows, records, images, costs, class_names))
    chosen = style.to_array(options_plot(passes, costs.options))
    return {"val/options": Image(chosen, "HWC"), "val/samples": Image(samples, "HWC")}


def write_hyperparameters(
    run: RunFolder, best: Mapping[str, Any], points: Sequence[tuple[float, float]]
) -> None:
    """Write the settings of a run and the result ``best`` of its gate on val, for the tab HPARAMS.

    Of the points of a gate for all budgets, the one at or just below its own preference counts.
    """
    gate, at = load_gate(run.path / GATE_FOLDER), 0
    if isinstance(gate, LearnedGate | RuleGate) and gate.budget_conditioning is not None:
        measured = gate.budget_conditioning.preferences
        at = bisect.bisect_right(measured, gate.preference + _ROUNDING) - 1
    computation, accuracy = points[at]
    metrics = {"final/val_accuracy": accuracy, "final/val_computation": computation}
    flat = flat_settings(read_yaml(run.config_path))
    settings = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flat.items()
        if value is not None and name not in _PLACES
    }
    board = TensorBoard(run, purge_step=None)
    try:
        board.scalars({**metrics, "hparams": HParam(settings, metrics)}, best.get("timesteps", 0))
    finally:
        board.close()
