"""``python -m dfs_rl.train_static``: find one table of bits for all images, the rival of every gate that looks at its image."""

from dataclasses import dataclass
from pathlib import Path

from dfs_rl.agents.hyperparameters import StaticMethod
from dfs_rl.experiments.backbone_resolver import DIGITS, Flip
from dfs_rl.experiments.gate_run import GateCommand
from dfs_rl.utils.config import Count, Positive, Seed, check_values


@dataclass(frozen=True, kw_only=True)
class TrainStaticConfig:
    """Settings of ``train_static``.

    Attributes:
        method: A learner that gives layer after layer its bits, as HAQ does, or a greedy search by sensitivity.
        dataset: "digits"; a folder with train/test parquet files or with class/name.jpg; or a hub id such as uoft-cs/cifar10.
        backbone: Run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a network of yours.
            Without it the digits use the one that ships; for other data one is trained first and kept for the next run.
            Exits that it has, see train_exits, are left out: a table walks every image to the end.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Resize each image's shorter side to so many pixels and crop the centre; by default as the backbone was trained.
        flip: Mirror half of the images left and right where a backbone is trained; by default as the backbone was trained.
        budget: Upper bound on computation in percent, stem and head included; a table has no gate to pay for.
        episodes: Tables that a learner tries; a greedy search ends by itself.
        images: Images of the agent split that each table is tried on.
        seed: Same seed, same machine, same threads: same table. A greedy search draws nothing.
        device: "auto", "cpu", "cuda", ...
        run_dir: New folder for the results; default runs/DATE-TIME-NAME.
        supernet_epochs: Epochs of the backbone that is trained where none is given.
        threads: CPU threads; with 1, runs repeat to the last bit.
    """

    method: StaticMethod = "ddpg"
    dataset: str = DIGITS
    backbone: Path | None = None
    weights: Path | None = None
    image_size: Count | None = None
    flip: Flip = None
    budget: Positive = 1.0
    episodes: Count = 600
    images: Count = 1000
    seed: Seed = 0
    device: str = "auto"
    run_dir: Path | None = None
    supernet_epochs: Count = 30
    threads: Count = 1

    def __post_init__(self) -> None:
        check_values(self)


COMMAND = GateCommand(
    kind="train_static",
    description="Find one table of bits for all images, by reinforcement or by a greedy search.",
    config_type=TrainStaticConfig,
    module="dfs_rl.experiments.static_search",
)
