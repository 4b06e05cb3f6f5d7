"""``python -m dfs_rl.train_cascade``: choose a confidence cascade, the rival of every gate that learns, and make it a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_rl.experiments.backbone_resolver import DIGITS, Flip, backbone_of_run, preview_backbone
from dfs_rl.experiments.gate_run import GateCommand, choice_of
from dfs_rl.utils.config import Count, Positive, check_values
from dfs_rl.utils.logging import say
from dfs_rl.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from dfs_rl.data import Dataset
    from dfs_rl.experiments.session import TrainingResult


@dataclass(frozen=True, kw_only=True)
class TrainCascadeConfig:
    """Settings of ``train_cascade``.

    Attributes:
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a network of yours.
            Without it the digits use the one that ships; for other data one is trained first and kept for the next run.
            Exits that it has, see train_exits, are left out: both passes walk to the end.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Resize each image's shorter side to so many pixels and crop the centre; by default as the backbone was trained.
        flip: Mirror half of the images left and right where a backbone is trained; by default as the backbone was trained.
        budget: Upper bound on the mean computation in percent, both passes of images that run twice included; a single image may cost
            as much as both.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        threads: CPU threads; with 1, runs repeat to the last bit.
    """

    dataset: str = DIGITS
    backbone: Path | None = None
    weights: Path | None = None
    image_size: Count | None = None
    flip: Flip = None
    budget: Positive = 1.0
    device: str = "auto"
    run_dir: Path | None = None
    supernet_epochs: Count = 30
    threads: Count = 1

    def __post_init__(self) -> None:
        check_values(self)


def _prepare(config: TrainCascadeConfig, dataset: "Dataset", device: str) -> str:
    """Refuse what will not do, and name the run."""
    from dfs_rl.gating.action_masks import gated_budget

    backbone = preview_backbone(choice_of(config, device), dataset)
    gated_budget(backbone.costs, config.budget)
    return f"cascade-{dataset.name}"


def _train(
    config: TrainCascadeConfig, dataset: "Dataset", run: RunFolder, device: str
) -> "TrainingResult":
    """Choose both passes and the threshold by what every uniform option does on the val split."""
    from dfs_rl.evaluation.baselines.cascade import cascade_text, choose_cascade, run_cascade
    from dfs_rl.evaluation.baselines.methods import uniform_methods
    from dfs_rl.experiments.session import TrainingResult
    from dfs_rl.gating.cascade import CascadeGate
    from dfs_rl.gating.model import GATE_FOLDER
    from dfs_rl.gating.storage import save_gate

    backbone = backbone_of_run(run, choice_of(config, device), dataset).backbone
    costs = backbone.costs
    say("Running every uniform option on the val split ...")
    val = dataset.val.to(device)
    uniform = [m.records[0] for m in uniform_methods(backbone.prepare().to(device), val)]
    chosen = choose_cascade(uniform, costs, config.budget)
    assert chosen is not None, "the budget suffices for the cheapest option, see _prepare"
    records = run_cascade(uniform, chosen)
    text = cascade_text(chosen, records, backbone.options)
    say(f"Chosen on val: {text}.")
    first, second = ((option,) * costs.n_layers for option in (chosen.first, chosen.second))
    gate = CascadeGate(first, second, threshold=chosen.threshold, options=backbone.options)
    save_gate(gate, run.path / GATE_FOLDER)
    return TrainingResult(
        best={
            "accuracy": records.accuracy,
            "computation": records.computation(costs).mean().item(),
            "choice": text,
        },
        images_seen={"gate": len(val) * len(uniform), "backbone": 0},
    )


COMMAND = GateCommand(
    kind="train_cascade",
    description="Choose a confidence cascade: a cheap pass for every image, a dearer one where the first is unsure.",
    config_type=TrainCascadeConfig,
    prepare=_prepare,
    train=_train,
)
