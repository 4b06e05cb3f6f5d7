"""``python -m dfs_rl.train_cascade``: choose a confidence cascade, the rival of every gate that learns, and make it a run."""

from dataclasses import dataclass
from pathlib import Path

from dfs_rl.experiments.backbone_resolver import DIGITS, Flip
from dfs_rl.experiments.gate_run import GateCommand
from dfs_rl.utils.config import Count, Positive, check_values


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


COMMAND = GateCommand(
    kind="train_cascade",
    description="Choose a confidence cascade: a cheap pass for every image, a dearer one where the first is unsure.",
    config_type=TrainCascadeConfig,
    module="dfs_rl.experiments.cascade_search",
)
