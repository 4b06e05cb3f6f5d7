"""Choice of a confidence cascade on the val split."""

from dfs_rl.backbones import Backbone, StoredBackbone
from dfs_rl.data import Dataset
from dfs_rl.evaluation.baselines.cascade import cascade_text, choose_cascade, run_cascade
from dfs_rl.evaluation.baselines.methods import uniform_baselines
from dfs_rl.experiments.config import TrainCascadeConfig
from dfs_rl.experiments.session import TrainingRecord, training_record
from dfs_rl.gating.action_masks import gated_budget
from dfs_rl.gating.model import GATE_FOLDER
from dfs_rl.gating.rules import cascade
from dfs_rl.gating.storage import save_gate
from dfs_rl.utils.device import resolve_device
from dfs_rl.utils.logging import print_status
from dfs_rl.utils.run_folder import RunFolder


def validate(config: TrainCascadeConfig, dataset: Dataset, backbone: Backbone) -> str:
    """Validate the configuration against the backbone, and return the run's name."""
    gated_budget(backbone.costs, config.budget)
    return f"cascade-{dataset.name}"


def train(
    config: TrainCascadeConfig, dataset: Dataset, run: RunFolder, stored: StoredBackbone
) -> TrainingRecord:
    """Choose both passes and the threshold from all uniform options on the val split."""
    backbone, device = stored.backbone, resolve_device(config.device)
    costs = backbone.costs
    print_status("Running every uniform option on the val split ...")
    val = dataset.val.to(device)
    uniform = [m.records[0] for m in uniform_baselines(backbone.to_inference().to(device), val)]
    chosen = choose_cascade(uniform, costs, config.budget)
    assert chosen is not None, "validate checks the budget"
    records = run_cascade(uniform, chosen)
    text = cascade_text(chosen, records, backbone.options)
    print_status(f"Chosen on val: {text}.")
    tables = ((option,) * costs.n_layers for option in (chosen.first, chosen.second))
    gate = cascade(*tables, threshold=chosen.threshold, options=backbone.options)
    save_gate(gate, run.path / GATE_FOLDER)
    computation = records.computation(costs).mean().item()
    best = {"accuracy": records.accuracy, "computation": computation, "choice": text}
    return training_record(best, gate_images=len(val) * len(uniform))
