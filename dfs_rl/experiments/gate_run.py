"""Runs that train gates: validation, creation, training, budget calibration and evaluation."""

import importlib
import time
from dataclasses import replace
from functools import partial

from dfs_rl.backbones import StoredBackbone, load_stored_backbone
from dfs_rl.data import Dataset
from dfs_rl.evaluation.budget_conditioning import accuracy_drop, calibrate_budget_conditioning
from dfs_rl.experiments.backbone_resolver import backbone_of_run, load_data, preview_backbone
from dfs_rl.experiments.budgets import with_percent_budgets
from dfs_rl.experiments.config import EvaluateConfig, GateRunConfig, GateTrainingConfig, create_run
from dfs_rl.experiments.evaluation import evaluate_run
from dfs_rl.experiments.search_config import TrainCascadeConfig
from dfs_rl.experiments.session import TrainingRecord, shipped_preference, write_hyperparameters
from dfs_rl.gating.loading import BACKBONE_FOLDER, GATE_FOLDER
from dfs_rl.gating.networks import LearnedGate
from dfs_rl.gating.rules import RuleGate
from dfs_rl.gating.storage import load_gate, save_gate
from dfs_rl.reporting.tables import summary_text
from dfs_rl.utils.cli import Invocation
from dfs_rl.utils.config import config_to_dict
from dfs_rl.utils.device import resolve_device, set_threads
from dfs_rl.utils.io import write_json
from dfs_rl.utils.logging import print_result, print_status
from dfs_rl.utils.run_folder import TRAINING_FILE, RunFolder, program
from dfs_rl.utils.run_records import read_record


def run(invocation: Invocation[GateRunConfig]) -> None:
    """Train a gate, unless the run is finished, evaluate it and print the results."""
    config, resume = invocation.config, invocation.resume
    set_threads(config.threads, resumed=resume is not None)
    resolve_device(config.device)
    dataset = load_data(config, resume)
    if resume is None:
        gate_run = GateRun.create(config, dataset, invocation.command)
    else:
        gate_run = GateRun(config, dataset, resume)
    folder = gate_run.folder
    with folder.lock():
        gate_run.train()
        try:
            evaluation = evaluate_run(
                EvaluateConfig(run=folder.path, device=config.device),
                dataset,
                progress=lambda text: print_status(f"Evaluating: {text} ..."),
                stored=gate_run.trained,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Interrupted; the gate is trained. Go on with: {program('evaluate')} {folder.path}"
            ) from None
    print_result(summary_text(evaluation.summary))
    print_status(f"Everything is in {folder.path}; pictures:")
    for picture in sorted(folder.plots_dir.glob("*.png")):
        print_status(f"  {picture}")


def validate(config: GateRunConfig, dataset: Dataset) -> tuple[GateRunConfig, str, StoredBackbone]:
    """Validate a configuration; return it with budgets in percent, the run's name and its backbone.

    The backbone may be untrained yet.
    """
    backbone = preview_backbone(config, dataset)
    config = with_percent_budgets(config, backbone.backbone.costs)
    if not config.uses_exits and backbone.backbone.costs.exits:
        # A later error may result from that.
        print_status("This gate does not use the backbone's exits; every image runs to the end.")
        backbone.backbone.set_exits(())
    config = config.for_backbone(backbone.backbone.costs)
    module = importlib.import_module(config.MODULE)
    return config, module.validate(config, dataset, backbone.backbone), backbone


class GateRun:
    """A run that trains a gate; it loads or builds the backbone once.

    The caller locks the folder. ``backbone`` is from ``validate``, or loaded when it is needed.
    ``trained`` is that after a training that did not end earlier.
    """

    def __init__(
        self,
        config: GateRunConfig,
        dataset: Dataset,
        folder: RunFolder,
        backbone: StoredBackbone | None = None,
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self._preview = backbone
        self.trained: StoredBackbone | None = None

    @classmethod
    def create(cls, config: GateRunConfig, dataset: Dataset, command: tuple[str, ...]) -> "GateRun":
        """Validate a configuration and create its run folder; ``command`` is for its record."""
        given = config
        config, name, backbone = validate(given, dataset)
        if given.budget_unit != config.budget_unit and config.budget is not None:
            budget = backbone.backbone.costs.cost_text(config.budget)
            print_status(f"The budget is {budget} of the gated layers in full precision.")
        resolved = config.with_resolved_defaults()
        folder = create_run(resolved, name, command=command, fingerprint=dataset.fingerprint)
        return cls(config, dataset, folder, backbone)

    def train(self) -> TrainingRecord:
        """Train or resume the gate, unless it is finished, and store ``training.json``.

        Ctrl-C raises KeyboardInterrupt once everything is saved.
        """
        try:
            return self._train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Interrupted and saved; go on with: {self.folder.resume_command}"
            ) from None

    def _train(self) -> TrainingRecord:
        run, path = self.folder, self.folder.path
        run.check_data(self.dataset.fingerprint, self.dataset.name)
        if run.is_finished:
            print_status(f"The training in {path} is finished.")
            return read_record(path / TRAINING_FILE, TrainingRecord)
        began = time.perf_counter()
        try:
            stored = backbone_of_run(run, self.config, self.dataset, self._preview)
            module = importlib.import_module(self.config.MODULE)
            record: TrainingRecord = module.train(self.config, self.dataset, run, stored)
        finally:
            seconds = run.add_seconds(time.perf_counter() - began)
        if self.config.cotrains:  # the best gate may belong to an earlier state
            stored = load_stored_backbone(path / BACKBONE_FOLDER)
        stored.backbone.cpu().eval()  # as it is loaded, so that its inference form is the same
        self.trained = stored
        points = self._calibrate_budgets(stored) or record.points_on_val
        record = replace(record, points_on_val=points, seconds=round(seconds, 1))
        write_hyperparameters(run, record.best_on_val, record.points_on_val)
        write_json(path / TRAINING_FILE, config_to_dict(record))
        if "timesteps" in record.best_on_val:
            print_status(
                f"Kept the gate of step {record.best_on_val['timesteps']:,}: the latest within one "
                "standard error of the highest mean reward on the val split."
            )
        return record

    def _calibrate_budgets(self, stored: StoredBackbone) -> tuple[tuple[float, float], ...]:
        """Measure a gate for all budgets, and set it to the configuration's budget or accuracy.

        The result is computation and accuracy in percent at each measured preference; empty for a
        gate with one budget.
        """
        path, budget = self.folder.path / GATE_FOLDER, self.config.budget
        gate = load_gate(path)
        if not isinstance(gate, LearnedGate | RuleGate) or gate.budget_conditioning is None:
            return ()
        costs, device = stored.backbone.costs, resolve_device(self.config.device)
        backbone, val = stored.backbone.to_inference().to(device), self.dataset.val.to(device)
        if isinstance(gate, LearnedGate):
            print_status("Measuring the cost of the gate at each preference on the val split ...")
            gate.budget_conditioning = calibrate_budget_conditioning(backbone, gate.to(device), val)
        measured = gate.budget_conditioning
        least, most = measured.budget_range
        in_words = partial(costs.cost_text, digits=3)
        print_status(
            f"The mean cost of what ships is {in_words(least)} to {in_words(most)}, by budget."
        )
        assert isinstance(self.config, GateTrainingConfig | TrainCascadeConfig)
        drop = self.config.max_accuracy_drop
        # A bound that the gate cannot hold is no error: it would lose the trained gate.
        if budget is not None and budget < least:
            print_status(
                f"A budget of {in_words(budget)} is below its range; it is set to "
                f"{in_words(least)}."
            )
        if budget is not None and budget > measured.rounded_range[1]:
            print_status(
                f"A budget of {in_words(budget)} is above its range; it spends {in_words(most)}."
            )
        if drop is not None and drop < measured.smallest_accuracy_drop:
            print_status(
                f"It loses at least {measured.smallest_accuracy_drop:.3g} points of accuracy on "
                f"val, more than {drop:g}; it is set to the cheapest point that loses no more."
            )
        gate.preference = shipped_preference(self.config, measured, gate.preference)
        save_gate(gate, path)
        if drop is not None:
            lost, low, high = accuracy_drop(backbone, gate, val)
            print_status(
                f"At its point it loses {lost:.2f} points of accuracy on {len(val):,} val images "
                f"(95 %: {low:.2f} to {high:.2f}). It was chosen on them, so others may lose more."
            )
            if high - low > drop:
                print_status(
                    f"Warning: with {len(val):,} val images that interval, {low:.2f} to {high:.2f} "
                    f"points, is wider than the {drop:g} asked for, which they cannot ensure."
                )
        return tuple(zip(measured.computations, measured.accuracies, strict=True))
