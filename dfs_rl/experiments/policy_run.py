"""Run folders of gates that plain Stable-Baselines3 trained on the environment."""

from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field

from dfs_rl.agents.policy_conversion import (
    Normalization,
    Policy,
    check_environment,
    gate_of_policy,
    load_policy,
    normalization_of,
)
from dfs_rl.data import Dataset
from dfs_rl.evaluation.budget_conditioning import calibrate_budget_conditioning
from dfs_rl.evaluation.evaluator import evaluate_gate
from dfs_rl.experiments.backbone_resolver import backbone_of_run, preview_backbone
from dfs_rl.experiments.budgets import with_percent_budgets
from dfs_rl.experiments.config import GateRunConfig, create_run
from dfs_rl.experiments.session import TrainingRecord, training_record
from dfs_rl.gating.loading import GATE_FOLDER
from dfs_rl.gating.passes import SINGLE_PASS, PassSettings
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.config import PositiveFloat, config_to_dict, configuration
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.io import write_json
from dfs_rl.utils.run_folder import TRAINING_FILE, RunFolder


@configuration
class PolicyGateConfig(GateRunConfig):
    """Settings of ``gate_from_sb3``: those of the environment that trained the policy.

    Attributes:
        budget: Upper bound on each image's computation in percent, which the gate keeps.
        passes: Passes of an episode.
        cost_weight_range: Lowest and highest cost weight; the gate is then one for all budgets.
        exits: Whether episodes could take the backbone's exits.
        name: Name of the gate in tables and plots.
    """

    KIND: ClassVar = "gate_from_sb3"

    passes: PassSettings = SINGLE_PASS
    cost_weight_range: tuple[PositiveFloat, PositiveFloat] | None = None
    exits: bool = True
    name: Annotated[str, Field(min_length=1)] = "SB3 policy"

    @property
    def uses_exits(self) -> bool:
        """True if the gate may take a backbone's exits."""
        return self.exits


def make_policy_run(
    config: PolicyGateConfig, dataset: Dataset, policy: Policy, normalize: Normalization | None
) -> tuple[RunFolder, TrainingRecord]:
    """Convert a policy to a gate, measure it on the val split and write its run folder."""
    loaded, timesteps = load_policy(policy)
    normalization = normalization_of(policy, normalize)
    preview = preview_backbone(config, dataset)
    config = with_percent_budgets(config, preview.backbone.costs)
    if not config.uses_exits:
        preview.backbone.set_exits(())
    convert = partial(
        gate_of_policy,
        loaded,
        normalization=normalization,
        passes=config.passes,
        budget=config.budget,
        budget_conditioning=config.cost_weight_range is not None,
        name=config.name,
    )
    convert(preview.backbone)  # an error leaves no folder behind
    check_environment(
        policy,
        preview.backbone,
        passes=config.passes,
        budget=config.budget,
        normalization=normalization,
    )
    command, fingerprint = (f"dfs_rl.{config.KIND}",), dataset.fingerprint
    run = create_run(config, f"sb3-{dataset.name}", command=command, fingerprint=fingerprint)
    with run.lock():
        trained = backbone_of_run(run, config, dataset, preview).backbone
        gate, device = convert(trained), resolve_device(config.device)
        backbone, val = trained.to_inference().to(device), dataset.val.to(device)
        gate.to(device)
        if gate.budget_conditioning is not None:
            gate.budget_conditioning = calibrate_budget_conditioning(backbone, gate, val)
        save_gate(gate, run.path / GATE_FOLDER)
        records = evaluate_gate(backbone, gate, val, budget=gate.budget)
        costs, measured = backbone.costs, gate.budget_conditioning
        record = training_record(
            {"accuracy": records.accuracy, "computation": records.computation(costs).mean().item()},
            gate_images=timesteps // costs.n_layers,
        )
        if measured is not None:
            points = tuple(zip(measured.computations, measured.accuracies, strict=True))
            record = replace(record, points_on_val=points)
        write_json(run.path / TRAINING_FILE, config_to_dict(record))
    return run, record
