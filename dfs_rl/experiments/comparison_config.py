"""What a comparison is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from dfs_rl.errors import ConfigError
from dfs_rl.evaluation.static_tables.config import SearchLimits
from dfs_rl.experiments.backbone_resolver import Flip
from dfs_rl.experiments.benchmark import GateName
from dfs_rl.utils.config import Count, Positive, check_values

_OF_TRAINING = (
    *("backbone", "weights", "image_size", "flip"),
    *("gates", "seeds", "timesteps", "agent", "gumbel"),
)
"""Settings that finished runs have no use for."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare.

    Attributes:
        runs: Folders of finished runs of commands that train gates; those that differ in nothing but the seed, and in where they
            ran, are one gate. Without any, the gates are trained.
        dataset: What to train gates on; with runs, where their data set is now, if it moved.
        backbone: What to train gates for: run of train_backbone or train_exits, or a backbone's folder, or module:function that makes a
            network of yours.
        weights: Safetensors file or state dict for the network that module:function makes.
        image_size: Resize each image's shorter side to so many pixels and crop the centre; by default as the backbone was trained.
        flip: Mirror half of the images left and right where a backbone is trained; by default as the backbone was trained.
        budgets: What images may cost on average, in percent. Gates for all budgets are turned to each; the others are trained for
            each. By default 0.5, 0.75, 1, 1.5 and 3 where gates are trained, and finished ones stay where they are.
        gates: Kinds of gates to train. The budget of maskable-ppo bounds every single image, that of the others the mean.
        seeds: Trainings of each.
        timesteps: Decisions that a gate learns from for each budget; one for all budgets learns from as many as the others together.
        agent: YAML file with further settings of train_agent, for all gates that it trains.
        gumbel: The same of train_gumbel.
        split: Split to report on; what to ship is chosen on val in either case.
        run_dir: New folder for the report and the trained gates; default runs/DATE-TIME-compare.
        device: Where to compute: "auto", "cpu", "cuda", ...
        threads: CPU threads.
        search: How long to search for each gate's best static table.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    dataset: str | None = None
    backbone: Path | None = None
    weights: Path | None = None
    image_size: Count | None = None
    flip: Flip = None
    budgets: tuple[Positive, ...] = ()
    gates: tuple[GateName, ...] = ("ppo", "gumbel-ff", "gumbel-lstm", "dfs-ff", "dfs-lstm")
    seeds: Count = 3
    timesteps: Count = 600_000
    agent: Path | None = None
    gumbel: Path | None = None
    split: Literal["test", "val"] = "test"
    run_dir: Path | None = None
    device: str = "auto"
    threads: Count = 1
    search: SearchLimits = field(default_factory=SearchLimits)

    def __post_init__(self) -> None:
        check_values(self)
        asked = [
            name for name in _OF_TRAINING if getattr(self, name) != getattr(type(self), name, None)
        ]
        if not self.runs and self.dataset is None:
            raise ConfigError(
                f"no data set is given, and {asked[0]} is for gates that are trained; name with --dataset what to train them on."
                if asked
                else "no run is given; name the folders of runs to compare, or with --dataset what to train gates on."
            )
        if self.runs and asked:
            raise ConfigError(
                f"{asked[0]} is {getattr(self, asked[0])}, which is for gates that are trained, but {self.runs[0]} is a finished run; "
                "leave out one or the other."
            )
        if not self.gates:
            raise ConfigError("gates is empty; name at least one.")
        _check_once("runs", [run.resolve() for run in self.runs])
        _check_once("budgets", self.budgets)
        _check_once("gates", self.gates)


def _check_once(name: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{name} has {value} more than once; each counts once.")
